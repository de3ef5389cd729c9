"""Losses that keep the experts evenly used."""

import torch
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.expert_dispatch import Routing


def balance_loss(routing: Routing, *, form: str, coef: float) -> Float[Tensor, ""]:
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

    Returns:
        The weighted loss of this batch.

    Raises:
        ValueError: if the form is unknown.
    """
    if form not in _FORMS:
        raise ValueError(f"balance={form!r} is unknown; choose one of {', '.join(_FORMS)}")
    if routing.num_tokens == 0 or coef == 0:
        return routing.scores.new_zeros(())
    scores = routing.scores
    return coef * _FORMS[form](routing.fractions.to(scores.dtype), mean_probabilities(routing))


def mean_probabilities(routing: Routing) -> Float[Tensor, " E"]:
    """Average the scores, normalised over experts, over the real tokens.

    Args:
        routing: one layer's routing of at least one real token.

    Returns:
        The mean share of the gate's mass that each expert gets; adds up to 1.
    """
    scores = routing.scores
    shares = scores / (scores.sum(dim=1, keepdim=True) + torch.finfo(scores.dtype).tiny)
    real = routing.experts[:, :1] < scores.shape[1]
    return torch.where(real, shares, torch.zeros_like(shares)).sum(dim=0) / routing.num_tokens


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
