"""How close a model's bucket attention stays to the dense attention it stands in for, on a real text."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sortyard.model.attention.bucket import BucketCore
from sortyard.model.attention.layer import SelfAttention
from sortyard.ops import BucketRelation, bucket_attention, bucket_relation
from sortyard.ops.segments import Segments


@dataclass(frozen=True)
class LayerInputs:
    """What one bucket layer saw: queries, keys and values [B, H, T, K], their sequences and the layer's core."""

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    segments: Segments
    core: BucketCore


@dataclass(frozen=True)
class BucketQuality:
    """One layer on one text, means over heads.

    `mass_kept` is the share of the dense softmax mass that lies on exact keys, `output_error` the norm of
    (bucket output - dense output) over the norm of the dense output, `sparsity` the share of query-key pairs that are
    not computed, where a summary counts as one key.
    """

    layer: int
    mass_kept: float
    output_error: float
    sparsity: float

    def as_dict(self) -> dict[str, float | int]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class BucketMaps:
    """One sequence in one layer, token by token: dense attention's mass and what bucket attention does with it."""

    mass: Float[Tensor, "H T T"]
    exact: Bool[Tensor, "H T T"]
    summarised: Bool[Tensor, "H T T"]
    quality: BucketQuality
    mass_kept_by_head: Float[Tensor, " H"]
    relation: BucketRelation


def bucket_quality(model: nn.Module, *, batch: Mapping[str, Tensor]) -> list[BucketQuality]:
    """Measure every bucket layer of a model on one sequence.

    Args:
        model: a sortyard model or head.
        batch: its inputs for one sequence without padding, such as `tokenizer(text, return_tensors="pt")`.

    Returns:
        One entry a bucket layer, in order; empty for a model with none.
    """
    return [bucket_maps(inputs).quality for inputs in capture_bucket_inputs(model, batch=batch)]


def capture_bucket_inputs(model: nn.Module, *, batch: Mapping[str, Tensor]) -> list[LayerInputs]:
    """Run a model once and keep the queries, keys and values of its bucket layers."""
    attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
    captured: list[LayerInputs] = []

    def keep(layer: int) -> Any:
        def hook(module: SelfAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden"]
            q, k, v = module.projections(hidden, kwargs["positions"])
            assert isinstance(module.core, BucketCore)
            captured.append(LayerInputs(layer, q, k, v, kwargs["segments"], module.core))

        return hook

    handles = [
        module.register_forward_pre_hook(keep(layer), with_kwargs=True)
        for layer, module in enumerate(attentions)
        if isinstance(module.core, BucketCore)
    ]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return captured


@torch.no_grad()
def bucket_maps(inputs: LayerInputs) -> BucketMaps:
    """Compare one layer's bucket attention on a batch's first sequence with dense attention over the same values."""
    q, k, v = (tensor[:1].float() for tensor in (inputs.q, inputs.k, inputs.v))
    spec, causal = inputs.core.spec_on(q.device), inputs.core.causal
    relation = bucket_relation(q, k, spec, causal=causal)
    exact = relation.near[0]  # [H, T, T]
    summarised = _summarised(relation.counts[0], members=relation.members[0], exact=exact, causal=causal)
    logits = (q @ k.transpose(-1, -2))[0] * q.shape[-1] ** -0.5
    if causal:
        logits = logits.masked_fill(torch.ones_like(exact).triu(1), -torch.inf)
    mass = logits.softmax(-1)
    dense = mass @ v[0]
    error = (bucket_attention(q, k, v, spec, causal=causal)[0] - dense).norm() / dense.norm()
    by_head = (mass * exact).sum(-1).mean(-1)
    length = mass.shape[-1]
    pairs = length * (length + 1) / 2 if causal else length**2
    computed = (exact.sum() + (relation.counts[0] > 0).sum()).item() / exact.shape[0]
    quality = BucketQuality(
        layer=inputs.layer, mass_kept=float(by_head.mean()), output_error=float(error), sparsity=1 - computed / pairs
    )
    return BucketMaps(
        mass=mass,
        exact=exact,
        summarised=summarised,
        quality=quality,
        mass_kept_by_head=by_head,
        relation=relation,
    )


def _summarised(counts: Tensor, *, members: Tensor, exact: Tensor, causal: bool) -> Tensor:
    """Say which pairs [H, T, T] are reached through a summary that the query uses."""
    visible = torch.ones_like(exact).tril() if causal else torch.ones_like(exact)
    hidden = visible & ~exact
    if (counts.sum(-1) == hidden.sum(-1)).all():  # a tree's summaries stand for all that is not exact
        return hidden
    return ((counts > 0).float() @ members.float() > 0) & hidden  # [H, T, M] @ [H, M, T]
