"""Experts over sorted copies: gather, multiply in groups, activate, multiply in groups, add back."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from sortyard.ops.expert_dispatch import Dispatch, Routing, combine, dispatch, sort_copies
from sortyard.ops.grouped_mlp.activations import activate

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def sorted_mlp(
    x: Float[Tensor, "N D"],
    routing: Routing,
    *,
    up: Float[Tensor, "E up D"],
    down: Float[Tensor, "E D F"],
    up_bias: Float[Tensor, "E up"] | None,
    down_bias: Float[Tensor, "E D"] | None,
    activation: str,
    gated: bool,
    product: Product,
) -> Float[Tensor, "N D"]:
    """Run all experts side by side; arguments as for `grouped_mlp`, and the grouped product to use."""
    order = sort_copies(routing)
    inner = product(dispatch(x, order), up, order.ends)  # [R, up]
    inner = activate(_add_bias(inner, up_bias, order), activation=activation, gated=gated)  # [R, F]
    copies = _add_bias(product(inner, down, order.ends), down_bias, order)  # [R, D]
    return combine(copies, order, weights=routing.weights)


def _add_bias(rows: Float[Tensor, "R O"], bias: Float[Tensor, "E O"] | None, order: Dispatch) -> Float[Tensor, "R O"]:
    return rows if bias is None else rows + bias.index_select(0, order.experts)
