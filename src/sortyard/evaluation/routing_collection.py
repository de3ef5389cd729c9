"""One pass over some texts that counts what every routing statistic needs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sortyard.evaluation.routing_choices import co_activation_counts, redundancy
from sortyard.model.experts.layer import ExpertLayer
from sortyard.ops.segments import Segments

Batch = Mapping[str, Tensor]
COMPARED_TOKENS = 256


@dataclass(frozen=True, eq=False)
class RoutingCounts:
    """Sums over all texts, D domains, L expert layers, E experts and V pieces of the vocabulary.

    Attributes:
        num_experts_per_tok: experts k of a token.
        domains: names of the domains.
        tokens: real tokens of each domain.
        loads: routed copies [D, L, E], padding excluded.
        pieces: routed copies [E, V] of each piece, layer by layer.
        together: tokens [E, E] that two experts share, layer by layer.
        redundancy: mean cosine of two experts' outputs, layer by layer.
    """

    num_experts_per_tok: int
    domains: tuple[str, ...]
    tokens: tuple[int, ...]
    loads: Tensor
    pieces: tuple[Tensor, ...]
    together: tuple[Tensor, ...]
    redundancy: tuple[float, ...]


@torch.no_grad()
def collect_routing(
    model: nn.Module, domains: Mapping[str, Iterable[Batch]], *, vocab_size: int, compared_tokens: int = COMPARED_TOKENS
) -> RoutingCounts:
    """Run a model over texts, once, and count its routing.

    The head is left out; the layers are watched from outside, and nothing in the model changes. Memory is that of one
    batch and 4 bytes for each layer, expert and piece of the vocabulary.

    Args:
        model: a model with expert layers.
        domains: for each kind of text its batches: `input_ids` [B, T] and other inputs of the model; labels are not
            read.
        vocab_size: pieces V; every id is below it.
        compared_tokens: real tokens, about, on which all experts of a layer are run and compared; spread over the
            domains, whose first batches they are taken from.

    Returns:
        The counts.

    Raises:
        ValueError: the model has no expert layers, or a domain has no batch.
    """
    layers = expert_layers(model)
    quota = max(1, compared_tokens // max(1, len(domains)))
    tallies = [_Tally(layer.num_experts, num_domains=len(domains), vocab_size=vocab_size) for layer in layers]
    for domain, (name, batches) in enumerate(domains.items()):
        limit = quota
        for batch in batches:
            _run(model, layers, batch, visit=_counting(tallies, domain=domain, limit=limit))
            limit = 0
        if limit:
            raise ValueError(f"{name}: no batch was given; routing is evaluated over at least one")
    return _summed(tallies, names=tuple(domains))


@torch.no_grad()
def collect_choices(model: nn.Module, batches: Iterable[Batch]) -> list[Tensor]:
    """Run a model over batches and keep the experts of every real token.

    Args:
        model: a model with expert layers.
        batches: as for `collect_routing`.

    Returns:
        For each expert layer the experts [N, k], on the CPU, in the order of the batches.

    Raises:
        ValueError: the model has no expert layers, or there is no batch.
    """
    layers = expert_layers(model)
    found: list[list[Tensor]] = [[] for _ in layers]
    for batch in batches:
        _run(model, layers, batch, visit=lambda number, call: found[number].append(call.experts))
    if not found[0]:
        raise ValueError("no batch was given; routing is compared over at least one")
    return [torch.cat(parts) for parts in found]


def expert_layers(model: nn.Module) -> list[ExpertLayer]:
    """Return a model's expert layers, in order.

    Raises:
        ValueError: it has none.
    """
    layers = [module for module in model.modules() if isinstance(module, ExpertLayer)]
    if not layers:
        raise ValueError("the model has no expert layers (num_experts=1); there is no routing to evaluate")
    return layers


@dataclass(frozen=True, eq=False)
class _Call:
    """What one layer did with a batch: states [B * T, D] that it got, and of the real tokens their experts and ids."""

    layer: ExpertLayer
    hidden: Tensor
    real: Tensor
    experts: Tensor
    token_ids: Tensor


def _run(model: nn.Module, layers: Sequence[ExpertLayer], batch: Batch, *, visit: Callable[[int, _Call], None]) -> None:
    """Run the encoder over a batch and show every expert layer's part in it, by the layer's number."""
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    ids = inputs["input_ids"].flatten()
    numbers: dict[nn.Module, int] = {layer: number for number, layer in enumerate(layers)}

    def watch(layer: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any], output: Any) -> None:
        assert isinstance(layer, ExpertLayer)
        segments: Segments = kwargs["segments"]
        real = segments.token_index
        experts = output[1].experts.index_select(0, real).long().cpu()
        visit(numbers[layer], _Call(layer, args[0].flatten(0, 1), real, experts, ids.index_select(0, real).cpu()))

    with _evaluating(model), _hooked(layers, watch):
        getattr(model, "base_model", model)(**inputs)


def _counting(tallies: "Sequence[_Tally]", *, domain: int, limit: int) -> Callable[[int, _Call], None]:
    def count(number: int, call: _Call) -> None:
        tallies[number].add(call, domain=domain)
        if limit:
            tallies[number].compare(call, limit=limit)

    return count


class _Tally:
    """The sums of one layer."""

    def __init__(self, num_experts: int, *, num_domains: int, vocab_size: int) -> None:
        self.loads = torch.zeros(num_domains, num_experts, dtype=torch.long)
        self.pieces = torch.zeros(num_experts, vocab_size, dtype=torch.int32)
        self.together = torch.zeros(num_experts, num_experts, dtype=torch.long)
        self.cosine, self.compared = 0.0, 0
        self.num_experts_per_tok = 0

    def add(self, call: _Call, *, domain: int) -> None:
        """Count a batch."""
        experts, (num_experts, vocab_size) = call.experts, self.pieces.shape
        self.num_experts_per_tok = experts.shape[1]
        self.loads[domain] += torch.bincount(experts.flatten(), minlength=num_experts)
        cells = (experts * vocab_size + call.token_ids[:, None]).flatten()
        self.pieces.view(-1).scatter_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
        self.together += co_activation_counts(experts, num_experts=num_experts)

    def compare(self, call: _Call, *, limit: int) -> None:
        """Run all experts on some of a batch's tokens, evenly spread, and add up how alike their outputs are."""
        some = call.real[:: max(1, len(call.real) // limit)][:limit]
        self.cosine += len(some) * redundancy(call.layer.expert_outputs(call.hidden.index_select(0, some)))
        self.compared += len(some)


def _summed(tallies: Sequence[_Tally], *, names: tuple[str, ...]) -> RoutingCounts:
    k = tallies[0].num_experts_per_tok
    loads = torch.stack([tally.loads for tally in tallies], dim=1)
    return RoutingCounts(
        num_experts_per_tok=k,
        domains=names,
        tokens=tuple((loads[:, 0].sum(dim=-1) // k).tolist()),
        loads=loads,
        pieces=tuple(tally.pieces for tally in tallies),
        together=tuple(tally.together for tally in tallies),
        redundancy=tuple(tally.cosine / tally.compared for tally in tallies),
    )


@contextmanager
def _hooked(layers: Sequence[nn.Module], watch: Callable[..., None]) -> Iterator[None]:
    handles = [layer.register_forward_hook(watch, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
