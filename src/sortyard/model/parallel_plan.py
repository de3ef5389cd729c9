"""Which weights tensor parallelism cuts, and how; imports no torch.

`from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2))` cuts by this plan: attention by heads, which
choose their keys by themselves, dense layers and experts by their inner width, the vocabulary by its ids. The styles
are transformers' own, except two of `sortyard.parallel.styles`.
"""

import math
from typing import TYPE_CHECKING

from sortyard.errors import InputError
from sortyard.parallel import EXPERTS, PACKED_BIAS

if TYPE_CHECKING:
    from sortyard.model.configuration import SortyardConfig

_LAYER = "encoder.layers.*"


def tensor_parallel_plan(config: "SortyardConfig") -> dict[str, str]:
    """Rules for the weights and modules that a model of this configuration has; what no rule names is not cut.

    Args:
        config: the model's configuration.

    Returns:
        Name in `SortyardModel`, layer numbers as "*", to style.
    """
    attention = f"{_LAYER}.attention"
    plan = {"embeddings.word_embeddings": "embedding_rowwise", f"{attention}.o_proj": "rowwise"}
    plan |= {f"{attention}.{name}_proj": "colwise" for name in "qkv"}
    plan |= _feed_forward(config, f"{_LAYER}.ffn", is_dense=_has_dense(config))
    if _has_experts(config):
        plan[f"{_LAYER}.ffn"] = EXPERTS
        if config.use_bias:  # [E, F]: the width is the last dim, which a matrix has cut in a "rowwise" layer
            plan[f"{_LAYER}.ffn.{_up(config)}_bias"] = "packed_rowwise" if config.gated_ffn else "rowwise"
        if config.shared_expert:
            plan |= _feed_forward(config, f"{_LAYER}.shared_ffn", is_dense=True)
    return plan


def check_divides(config: "SortyardConfig", tp_size: int) -> None:
    """Refuse to cut what falls apart unevenly.

    Args:
        config: the model's configuration.
        tp_size: number of processes that share a layer.

    Raises:
        InputError: if `tp_size` does not divide the heads or an inner width.
    """
    fields = ["num_attention_heads"]
    if _has_dense(config) or config.shared_expert:
        fields.append("intermediate_size")
    if _has_experts(config):
        fields.append("moe_intermediate_size")
    values = {name: int(getattr(config, name)) for name in fields}
    uneven = [f"{name} {value}" for name, value in values.items() if value % tp_size]
    if uneven:
        common = math.gcd(*values.values())
        fitting = [str(size) for size in range(1, common + 1) if common % size == 0]
        raise InputError(
            f"tp_size is {tp_size}, which does not divide {' and '.join(uneven)}; for this model it can be "
            f"{', '.join(fitting)}"
        )


def _feed_forward(config: "SortyardConfig", prefix: str, *, is_dense: bool) -> dict[str, str]:
    """Rules for a dense layer's modules, which are those for the stacked matrices of experts, too."""
    up = f"{prefix}.{_up(config)}"
    plan = {up: "packed_colwise" if config.gated_ffn else "colwise", f"{prefix}.down_proj": "rowwise"}
    if is_dense and config.gated_ffn and config.use_bias:
        plan[f"{up}.bias"] = PACKED_BIAS
    return plan


def _up(config: "SortyardConfig") -> str:
    return "gate_up_proj" if config.gated_ffn else "up_proj"


def _has_experts(config: "SortyardConfig") -> bool:
    return any(config.has_experts(layer) for layer in range(config.num_hidden_layers))


def _has_dense(config: "SortyardConfig") -> bool:
    return not all(config.has_experts(layer) for layer in range(config.num_hidden_layers))
