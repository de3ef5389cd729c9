"""How the experts of a model are used: load statistics, specialisation and redundancy."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sortyard.model.experts.layer import ExpertLayer
from sortyard.ops.segments import Segments

FloatArray = NDArray[np.float64]
Batches = Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True)
class RoutingReport:
    """Use of a model's experts over one set of texts; each tuple holds a value per expert layer.

    Random routing reaches a utilisation of 1, and a single domain's is low in a specialised model, so the headline
    means something only beside the model's quality and over the whole mix of texts.

    Attributes:
        num_experts: experts N of a layer.
        num_experts_per_tok: experts k of a token.
        num_tokens: tokens the loads were counted over, padding excluded.
        utilisation: U_H = exp(entropy of the loads) / N, in [1/N, 1].
        inverse_simpson: U_2 = 1 / (N * sum of squared load shares), in [1/N, 1].
        share_used: share of experts with at least a quarter of their fair load (A_0.25).
        dead_experts: experts without any load.
        variation: coefficient of variation of the loads.
        max_violation: largest load over the fair load, minus 1 (MaxVio).
    """

    num_experts: int
    num_experts_per_tok: int
    num_tokens: int
    utilisation: tuple[float, ...]
    inverse_simpson: tuple[float, ...]
    share_used: tuple[float, ...]
    dead_experts: tuple[int, ...]
    variation: tuple[float, ...]
    max_violation: tuple[float, ...]

    @property
    def headline(self) -> float:
        """Utilisation of the least evenly used layer."""
        return min(self.utilisation)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, the headline included."""
        return {"headline": self.headline, **asdict(self)}


def routing_report(loads: ArrayLike, *, num_experts_per_tok: int) -> RoutingReport:
    """Summarise the loads of all expert layers.

    Args:
        loads: routed copies [L, E] per layer and expert, summed over the evaluated texts.
        num_experts_per_tok: experts k of a token, at least 1.

    Returns:
        The report.

    Raises:
        ValueError: if the loads are no table of counts, or a layer has none.
    """
    table = np.asarray(loads, dtype=np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"loads has shape {table.shape}; it must be [layers, experts] with at least one of each")
    _shares(table)
    return RoutingReport(
        num_experts=table.shape[1],
        num_experts_per_tok=num_experts_per_tok,
        num_tokens=round(float(table[0].sum()) / num_experts_per_tok),
        utilisation=_floats(utilisation(table)),
        inverse_simpson=_floats(inverse_simpson(table)),
        share_used=_floats(share_used(table)),
        dead_experts=tuple(int(count) for count in (table == 0).sum(axis=-1)),
        variation=_floats(variation(table)),
        max_violation=_floats(max_violation(table)),
    )


def utilisation(loads: ArrayLike) -> FloatArray:
    """Compute U_H = exp(H(f)) / N, the effective share of experts.

    Args:
        loads: counts [..., E]; every row must hold some.

    Returns:
        Values [...] in [1/N, 1].
    """
    shares = _shares(loads)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(np.exp(-(shares * logs).sum(axis=-1)) / shares.shape[-1])


def inverse_simpson(loads: ArrayLike) -> FloatArray:
    """Compute U_2 = 1 / (N * sum f^2) = 1 / (1 + CV^2).

    Args:
        loads: counts [..., E].

    Returns:
        Values [...] in [1/N, 1].
    """
    shares = _shares(loads)
    return np.asarray(1 / (shares.shape[-1] * np.square(shares).sum(axis=-1)))


def share_used(loads: ArrayLike, *, threshold: float = 0.25) -> FloatArray:
    """Compute the share of experts that get at least `threshold` of their fair load.

    Args:
        loads: counts [..., E].
        threshold: share of the fair load 1/N, at least 0.

    Returns:
        Values [...] in [0, 1].
    """
    shares = _shares(loads)
    return np.asarray((shares * shares.shape[-1] >= threshold).mean(axis=-1))


def variation(loads: ArrayLike) -> FloatArray:
    """Compute the coefficient of variation: standard deviation of the loads over their mean.

    Args:
        loads: counts [..., E].

    Returns:
        Values [...], at least 0.
    """
    shares = _shares(loads)
    return np.asarray(shares.std(axis=-1) * shares.shape[-1])


def max_violation(loads: ArrayLike) -> FloatArray:
    """Compute MaxVio: the largest load over the fair load, minus 1.

    Args:
        loads: counts [..., E].

    Returns:
        Values [...] in [0, N - 1].

    Source: Wang et al. 2024 (arXiv:2408.15664), section 4.1.
    """
    shares = _shares(loads)
    return np.asarray(shares.max(axis=-1) * shares.shape[-1] - 1)


def mutual_information(loads: ArrayLike) -> float:
    """Measure how much a routed copy's expert says about its text's domain.

    Args:
        loads: counts [domains, E] of one layer.

    Returns:
        Bits; 0 when domains use experts alike.
    """
    counts = np.asarray(loads, dtype=np.float64)
    joint = _shares(counts.reshape(-1)).reshape(counts.shape)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)
    return max(0.0, float((joint * np.log2(ratio)).sum()))


def redundancy(outputs: Tensor) -> float:
    """Measure how alike the experts are: mean cosine between two experts' outputs on the same token.

    Args:
        outputs: [E, N, D], every expert on every token; at least two experts and one token.

    Returns:
        A value in [-1, 1]; 1 for copies of one expert.

    Raises:
        ValueError: if there is nothing to compare.
    """
    num_experts, num_tokens, _ = outputs.shape
    if num_experts < 2 or num_tokens < 1:
        raise ValueError(f"redundancy needs two experts and a token; outputs has shape {tuple(outputs.shape)}")
    units = nn.functional.normalize(outputs.double(), dim=-1)
    # The sum over all pairs is the squared norm of the sum; a vector of zeros is like no other.
    total = units.sum(dim=0).square().sum(dim=-1) - units.square().sum(dim=(0, 2))
    return float(total.mean()) / (num_experts * (num_experts - 1))


@torch.no_grad()
def collect_loads(model: nn.Module, batches: Batches) -> FloatArray:
    """Run a model over batches and add up its expert loads.

    Args:
        model: a model whose outputs carry `expert_loads` [L, E].
        batches: keyword arguments of each forward pass, on the model's device.

    Returns:
        Routed copies [L, E], padding excluded.

    Raises:
        ValueError: if there was no batch, or the model has no expert layers.
    """
    total: FloatArray | None = None
    with _evaluating(model):
        for batch in batches:
            loads = model(**batch, output_statistics=True).expert_loads
            if loads is None:
                raise ValueError("the model has no expert layers (num_experts=1); there is no routing to evaluate")
            counted = loads.double().cpu().numpy()
            total = counted if total is None else total + counted
    if total is None:
        raise ValueError("no batch was given; routing is evaluated over at least one")
    return total


@torch.no_grad()
def collect_redundancy(model: nn.Module, batch: Mapping[str, Tensor], *, num_tokens: int = 256) -> tuple[float, ...]:
    """Run every expert of every layer on the same tokens of a batch and compare their outputs.

    Args:
        model: a model with expert layers.
        batch: keyword arguments of one forward pass, on the model's device.
        num_tokens: real tokens compared, at least 1; the cost is that of all experts on each.

    Returns:
        The redundancy of each expert layer, in order.
    """
    found: list[float] = []

    def compare(layer: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, ExpertLayer)
        segments: Segments = kwargs["segments"]
        tokens = args[0].flatten(0, 1).index_select(0, segments.token_index[:num_tokens])
        found.append(redundancy(layer.expert_outputs(tokens)))

    layers = [module for module in model.modules() if isinstance(module, ExpertLayer)]
    hooks = [layer.register_forward_pre_hook(compare, with_kwargs=True) for layer in layers]
    try:
        with _evaluating(model):
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _shares(loads: ArrayLike) -> FloatArray:
    counts = np.asarray(loads, dtype=np.float64)
    totals = counts.sum(axis=-1, keepdims=True)
    if not np.isfinite(counts).all() or (counts < 0).any() or (totals <= 0).any():
        raise ValueError("loads must be counts of at least 0, and some in every row; route at least one token first")
    return np.asarray(counts / totals)


def _floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
