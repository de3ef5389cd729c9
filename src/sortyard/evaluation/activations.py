"""Bytes that a forward pass keeps for the backward pass, from a configuration alone.

Counted off what autograd saves of our models (a test compares): residual lines in float32, the inputs of matrix
products in the type they are computed in, each once per product that casts it. Attention is that of the fused
kernels, which keep no weights; experts are those of the backend "grouped", which GPUs run.
"""

from dataclasses import dataclass
from typing import Any

FLOAT_BYTES = 4
HALF_BYTES = 2


@dataclass(frozen=True)
class Cut:
    """How tensor and expert parallelism cut a layer's activations.

    Attributes:
        tp: Processes that share heads, inner widths and the vocabulary.
        residuals: Processes that share the tokens of the residual lines (sequence parallelism).
        sends_copies: Whether copies of tokens travel to their experts, which keeps them on both sides.
    """

    tp: int = 1
    residuals: int = 1
    sends_copies: bool = False


WHOLE = Cut()


def layer_bytes(config: Any, *, layer: int, keys: float, half: bool, cut: Cut = WHOLE) -> float:
    """Bytes that one layer keeps for each token, its own input left out and its output included.

    With D hidden size, F inner width a token passes through, H heads of width K and b bytes of a product's operand:

        8 D                      the two residual lines
        b D (1 or 3)             the attention's input; 16-bit products cast it once each for queries, keys, values
        b (4 D + 2 K) + 4 H      queries, keys, values, output, rotary factors, log-sum-exp
        8 H + 16 D / bucket_size orders and means of the buckets
        b D + b F (4 or 2)       the feed-forward input; gate, up, activation and product, or up and activation
        b (3 D + 4 F) a copy     the same of experts, with outputs before and after weighting; 8 D for the router

    Args:
        config: a `SortyardConfig`.
        layer: number of the layer.
        keys: keys that a query reads, kept as weights only where attention drops some.
        half: whether products run in 16 bits.
        cut: what of it one process has.
    """
    size, width, heads = _operand(half), int(config.hidden_size), int(config.num_attention_heads)
    residual: float = 2 * FLOAT_BYTES * width + 16 + (2 * width if config.hidden_dropout_prob else 0)
    inputs = (3 if half else 1) * size * width
    rotary = 2 * size * width // heads if config.position_embedding_type == "rope" else 0
    mixing: float = 4 * size * width + FLOAT_BYTES * heads
    if config.attention_of(layer) == "bucket":
        mixing += 2 * FLOAT_BYTES * heads + 4 * FLOAT_BYTES * width / config.bucket_size
    if config.attention_probs_dropout_prob:
        mixing += FLOAT_BYTES * heads * keys
    whole, inner = _feed_forward(config, layer=layer, size=size, cut=cut)
    return residual / cut.residuals + inputs + rotary + whole + (mixing + inner) / cut.tp


def checkpoint_bytes(config: Any, *, cut: Cut = WHOLE) -> float:
    """Bytes for each token of a line between two layers, all that activation checkpointing keeps of a layer."""
    return FLOAT_BYTES * float(config.hidden_size) / cut.residuals


def head_bytes(config: Any, *, half: bool, cut: Cut = WHOLE) -> tuple[float, float]:
    """Bytes for each target: what the head keeps, and what its loss needs on top at its peak.

    Kept are four vectors of the prediction head and the log-probabilities in float32; logits and gradient, in float32
    both, come on top while the loss is computed.
    """
    vectors = 4 * _operand(half) * config.hidden_size
    return vectors + FLOAT_BYTES * config.vocab_size / cut.tp, 2 * FLOAT_BYTES * config.vocab_size / cut.tp


def _operand(half: bool) -> int:
    return HALF_BYTES if half else FLOAT_BYTES


def _feed_forward(config: Any, *, layer: int, size: int, cut: Cut) -> tuple[float, float]:
    """Bytes for each token that every process keeps, and those that tensor parallelism cuts."""
    values = (4 if config.gated_ffn else 2) * size
    dense = (size * config.hidden_size, values * config.intermediate_size)
    if not config.has_experts(layer):
        return dense
    copies, width = config.num_experts_per_tok, config.hidden_size
    router = 2 * FLOAT_BYTES * width + 4 * FLOAT_BYTES * config.num_experts + 48 * copies
    whole = router + size * copies * width * (5 if cut.sends_copies else 3)
    inner = values * copies * config.moe_intermediate_size
    if config.shared_expert:
        whole, inner = whole + dense[0], inner + dense[1]
    return whole, inner
