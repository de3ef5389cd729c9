"""Losses that keep the experts evenly used."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing


def of_this_batch(sums: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The sums of one process are those of the whole batch."""
    return sums


def balance_loss(
    routing: Routing, *, form: str, coef: float, total: Callable[[Tensor], Tensor] = of_this_batch
) -> Float[Tensor, ""]:
    """Measure how unevenly a layer's experts are used.

    With N experts, f the shares of routed copies (no gradient) and P the mean over real tokens of the scores
    normalised over experts:

    - default: coef * N * sum (p - 1/N)^2, p = f + P - stopgrad(P): the value follows what was routed, the gradient
      goes through the gate. Zero when even.
    - literal: coef * sum (P - 1/N)^2, the published formula on mean gate values; it hardly moves the loads.
    - switch: coef * N * sum f P (Fedus et al. 2021, arXiv:2101.03961, equation 4); `coef` when even.
    - none: 0.

    Args:
        routing: one layer's routing.
        form: one of the names above.
        coef: weight of the loss, at least 0.
        total: adds a vector up over the processes that share a batch; its gradient is that of this process's part.

    Returns:
        The weighted loss of this batch.

    Raises:
        ValueError: if the form is unknown.
    """
    if form not in _FORMS:
        raise ValueError(f"balance={form!r} is unknown; choose one of {', '.join(_FORMS)}")
    if coef == 0:
        return routing.scores.new_zeros(())
    num_experts = routing.scores.shape[1]
    loads = routing.loads.to(routing.scores.dtype)
    num_tokens = loads.new_full((1,), routing.num_tokens)
    sums = total(torch.cat([loads, summed_shares(routing), num_tokens]))
    loads, shares, tokens = sums.split([num_experts, num_experts, 1])
    loss = _FORMS[form](loads / loads.sum().clamp(min=1), shares / tokens.clamp(min=1))
    weighted: Tensor = coef * loss * (tokens[0] > 0)
    return weighted


def summed_shares(routing: Routing) -> Float[Tensor, " E"]:
    """Add up the scores, normalised over experts, over the real tokens.

    Args:
        routing: one layer's routing.

    Returns:
        The gate's mass that each expert gets; adds up to the number of tokens.
    """
    scores = routing.scores
    shares = scores / (scores.sum(dim=1, keepdim=True) + torch.finfo(scores.dtype).tiny)
    real = routing.experts[:, :1] < scores.shape[1]
    return torch.where(real, shares, torch.zeros_like(shares)).sum(dim=0)


def _default(loads: Tensor, gates: Tensor) -> Tensor:
    return len(loads) * _unevenness(loads + gates - gates.detach())


def _literal(loads: Tensor, gates: Tensor) -> Tensor:  # noqa: ARG001
    return _unevenness(gates)


def _switch(loads: Tensor, gates: Tensor) -> Tensor:
    return len(loads) * (loads * gates).sum()


def _none(loads: Tensor, gates: Tensor) -> Tensor:  # noqa: ARG001
    return gates.new_zeros(())


def _unevenness(shares: Tensor) -> Tensor:
    return (shares - 1 / len(shares)).square().sum()


_FORMS = {"default": _default, "literal": _literal, "switch": _switch, "none": _none}
