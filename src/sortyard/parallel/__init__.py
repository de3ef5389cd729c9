"""Work that several processes share. A layer's own code knows nothing of them: what is here wraps it.

The names of our styles of tensor parallelism, for plans, and of the kinds of exchange, for metrics, stand here to be
used without torch.
"""

EXPERTS = "sortyard_experts"
PACKED_BIAS = "sortyard_packed_bias"

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
