"""Work that several processes share. A layer's own code knows nothing of them: what is here wraps it.

The names of our styles of tensor parallelism stand here, for plans to use without torch.
"""

EXPERTS = "sortyard_experts"
PACKED_BIAS = "sortyard_packed_bias"
