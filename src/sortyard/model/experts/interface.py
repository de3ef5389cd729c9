"""transformers' experts interface: their functions on our layers, ours on theirs.

Importing this module registers ours with transformers, as "sortyard".
"""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate, grouped_mm_experts_forward

from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp import ACTIVATIONS, grouped_mlp

OURS = "sortyard"
EAGER = "eager"

ExpertsFunction = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def check_implementation(name: str | None) -> str:
    """Settle on an experts implementation.

    Args:
        name: "sortyard" (this library's), "eager" (one expert after the other, in plain torch), or a name that is
            registered with transformers ("batched_mm", "grouped_mm", ...); None = "sortyard".

    Returns:
        The name.

    Raises:
        ValueError: if nothing is registered under the name.
    """
    if name is None:
        return OURS
    known = (EAGER, *sorted(ALL_EXPERTS_FUNCTIONS.valid_keys()))
    if name not in known:
        raise ValueError(f"experts_implementation={name!r} is unknown; choose one of {', '.join(known)}")
    return name


def foreign_function(name: str) -> ExpertsFunction:
    """Look up a function that is not ours.

    Args:
        name: its registered name.

    Returns:
        The function, to be called with (module, hidden states, chosen experts, their weights).
    """
    function: ExpertsFunction = ALL_EXPERTS_FUNCTIONS[name]
    return function


def run_on_foreign_module(
    module: nn.Module,
    hidden_states: Float[Tensor, "N D"],
    top_k_index: Int[Tensor, "N k"],
    top_k_weights: Float[Tensor, "N k"],
) -> Float[Tensor, "N D"]:
    """Run the experts of another transformers model by `grouped_mlp`.

    This is what `experts_implementation="sortyard"` does there: the fused operator on a CPU, and transformers' own
    "grouped_mm" elsewhere, where ours has not been measured.

    Args:
        module: an experts module in transformers' layout.
        hidden_states: token vectors.
        top_k_index: chosen experts; the number of experts or more where the slot belongs to nobody.
        top_k_weights: their weights.

    Returns:
        The weighted sum of each token's experts.

    Raises:
        ValueError: if the module computes something that `grouped_mlp` does not.
    """
    if hidden_states.device.type != "cpu":
        theirs: Tensor = grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        return theirs
    activation = _activation_of(module)
    gated, bias = bool(module.has_gate), bool(module.has_bias)
    name = "gate_up_proj" if gated else "up_proj"
    return grouped_mlp(
        hidden_states,
        _routing_of(top_k_index, top_k_weights, num_experts=len(module.down_proj)),  # type: ignore[arg-type]
        up=getattr(module, name),
        down=module.down_proj,  # type: ignore[arg-type]
        up_bias=getattr(module, f"{name}_bias") if bias else None,
        down_bias=module.down_proj_bias if bias else None,  # type: ignore[arg-type]
        activation=activation,
        gated=gated,
        backend="fused",
    ).to(hidden_states.dtype)


def _routing_of(experts: Int[Tensor, "N k"], weights: Float[Tensor, "N k"], *, num_experts: int) -> Routing:
    # The fused operator reads neither scores nor loads: one number stands for all of them.
    nothing = weights.new_zeros(())
    return Routing(
        experts,
        weights,
        nothing.expand(len(experts), num_experts),
        nothing.expand(num_experts),
        num_tokens=len(experts),
    )


def _activation_of(module: nn.Module) -> str:
    """Name the activation, if all that the module says of itself is what `grouped_mlp` computes."""
    kind = type(module).__name__
    plain = not module.is_transposed and module.is_concatenated and not module.has_post_expert_norm
    if not plain or (module.has_gate and getattr(type(module), "_apply_gate", None) is not _default_apply_gate):
        raise ValueError(
            f"experts_implementation='sortyard' cannot run {kind}: its weights are transposed or interleaved, or it "
            "has a gate or norm of its own; choose another implementation"
        )
    name = getattr(module.config, "hidden_act", None)
    if name not in ACTIVATIONS or type(module.act_fn) is not type(ACT2FN[name]):
        raise ValueError(
            f"experts_implementation='sortyard' cannot run {kind}: its activation {name!r} is none of "
            f"{', '.join(ACTIVATIONS)}; choose another implementation"
        )
    return str(name)


ALL_EXPERTS_FUNCTIONS.register(OURS, run_on_foreign_module)
