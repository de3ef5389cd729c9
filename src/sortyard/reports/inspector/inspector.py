"""What a model does with a text, as the JSON values that the inspector's page draws."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sortyard.errors import InputError
from sortyard.evaluation.batching import position_limit
from sortyard.evaluation.buckets import BucketMaps, LayerInputs, bucket_maps, capture_bucket_inputs
from sortyard.evaluation.query_reading import bucket_numbers, pooled, read_query
from sortyard.model.attention.bucket import BucketCore
from sortyard.model.attention.layer import SelfAttention
from sortyard.model.block import Block
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.routing import RoutingRecord
from sortyard.reports.inspector.prediction import predict
from sortyard.reports.inspector.tokens import EncodedText, encode_text

Json = dict[str, Any]
MAX_TOKENS = 4096
MAX_PAIRS = 2**26  # heads times tokens squared: a relation of this size takes about a gigabyte
CELLS = 128
SHADES = 255
KEPT_READINGS, KEPT_LAYERS = 4, 2
ValueT = TypeVar("ValueT")


@dataclass
class Reading:
    """One text, read once.

    Attributes:
        text: its tokens.
        buckets: what every bucket layer saw, by layer.
        routing: what every expert layer decided, by layer.
        prediction: the model's answer.
        maps: the layers that were looked at last.
    """

    text: EncodedText
    buckets: dict[int, LayerInputs]
    routing: dict[int, RoutingRecord]
    prediction: Json
    maps: OrderedDict[int, BucketMaps] = field(default_factory=OrderedDict)


class Inspector:
    """Answers questions about a model and a text.

    Args:
        model: a sortyard model or head, or any Hugging Face model, of which only tokens and answer can be shown.
        tokenizer: its fast tokenizer.
        name: what the page calls the model.
    """

    def __init__(self, model: Any, *, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self._attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        self._experts = {i: block.ffn for i, block in enumerate(blocks) if isinstance(block.ffn, ExpertLayer)}
        self._readings: OrderedDict[tuple[str, str], Reading] = OrderedDict()
        self.max_tokens = self._token_limit()

    def about(self) -> Json:
        """Return what the page says of the model before any text is read."""
        experts = next(iter(self._experts.values())).num_experts if self._experts else 0
        with_buckets = self.bucket_layers()
        return {
            "name": self.name, "kind": type(self.model).__name__, "max_tokens": self.max_tokens,
            "layers": ["bucket" if i in with_buckets else "dense" for i in range(len(self._attentions))],
            "heads": self._num_heads if self._attentions else 0, "num_experts": experts, "notes": self._notes(),
        }  # fmt: skip

    def look(self, text: str, *, before: str = "", other: str | None = None) -> Json:
        """Read a text, and where another text before it is given, read it behind that as well.

        Args:
            text: what is looked at.
            before: what stands before it.
            other: what stands before it the second time; None reads it once.

        Returns:
            `sides`, one or two, and what differs between them.

        Raises:
            InputError: there is no text, or it is too long.
        """
        readings = [self._reading(text, before) for before in ([before] if other is None else [before, other])]
        answer: Json = {"sides": [self._side(reading) for reading in readings]}
        if len(readings) == 2:
            answer |= _difference(*readings)
        return answer

    def map(self, text: str, *, layer: int, head: int, before: str = "") -> Json:
        """Return the token x token picture of a head, its buckets, and how close its layer stays to dense attention.

        Raises:
            InputError: the text cannot be read, or there is no such bucket layer or head.
        """
        reading = self._reading(text, before)
        inputs, maps = self._maps(reading, layer=layer, head=head)
        shares = [pooled(part[head].float(), size=CELLS) for part in (maps.exact, maps.summarised)]
        kind = torch.stack([1 - shares[0] - shares[1], *shares]).argmax(0)
        mass = pooled(maps.mass[head], size=CELLS).sqrt()
        limit = float(mass.flatten().quantile(0.99)) or 1.0
        buckets = bucket_numbers(inputs)
        exact, summarised = (float(part[head].float().mean()) for part in (maps.exact, maps.summarised))
        return {
            "layer": layer, "head": head, "size": len(maps.mass[head]), "cells": len(mass),
            "shade": (mass / limit).clamp(max=1).mul(SHADES).round().int().tolist(), "kind": kind.tolist(),
            "exact": exact, "summarised": summarised, "mass_kept": float(maps.mass_kept_by_head[head]),
            "layer_mass_kept": maps.quality.mass_kept, "output_error": maps.quality.output_error,
            "sparsity": maps.quality.sparsity, "buckets": None if buckets is None else buckets[head].tolist(),
        }  # fmt: skip

    def row(self, text: str, *, layer: int, head: int, query: int, before: str = "") -> Json:
        """Return what one query reads: by key its kind, dense mass and weight, and the summaries.

        Raises:
            InputError: the text cannot be read, or there is no such bucket layer, head or token.
        """
        reading = self._reading(text, before)
        inputs, maps = self._maps(reading, layer=layer, head=head)
        _check_range("query", query, limit=len(reading.text.tokens), what="tokens")
        found = read_query(inputs, maps, head=head, query=query)
        kind = found.exact.int() + 2 * found.summarised.int()
        return {
            "query": query,
            "kind": "".join(map(str, kind.tolist())),
            "mass": _rounded(found.mass), "weight": _rounded(found.weight),
            "num_exact": int(found.exact.sum()), "num_summarised": int(found.summarised.sum()),
            "mass_exact": _digits(float(found.mass[found.exact].sum())),
            "summaries": [
                {"keys": list(summary.keys), "members": summary.num_members, "mass": _digits(summary.mass),
                 "weight": _digits(summary.weight)}
                for summary in found.summaries
            ],
        }  # fmt: skip

    def median_head(self, text: str, *, before: str, layer: int) -> int:
        """Return the head whose exact keys hold the median mass: neither the best case nor the worst."""
        _, maps = self._maps(self._reading(text, before), layer=layer, head=0)
        return int(maps.mass_kept_by_head.argsort()[len(maps.mass_kept_by_head) // 2])

    def bucket_layers(self) -> list[int]:
        """Return the numbers of the layers that have buckets."""
        return [i for i, module in enumerate(self._attentions) if isinstance(module.core, BucketCore)]

    @property
    def _num_heads(self) -> int:
        return int(getattr(self.model.config, "num_attention_heads", 1))

    def _token_limit(self) -> int:
        own = position_limit(self.model, tokenizer=self.tokenizer) or MAX_TOKENS
        return min(own, MAX_TOKENS, int((MAX_PAIRS / self._num_heads) ** 0.5))

    def _notes(self) -> list[str]:
        if not self._attentions:
            return [
                f"{type(self.model).__name__} is no sortyard model: it has neither buckets nor experts, so only its "
                "tokens and its answer are shown. `sortyard upcycle` makes a sparse model of it."
            ]
        notes = []
        if not self.bucket_layers():
            notes.append(
                "This model has no bucket layers: its attention computes every pair, and nothing is summarised."
            )
        if not self._experts:
            notes.append("This model has no experts: every token goes through the same feed-forward layers.")
        return notes

    def _reading(self, text: str, before: str) -> Reading:
        key = (text, before)
        return _kept(self._readings, key, limit=KEPT_READINGS, make=lambda: self._read(text, before=before))

    def _read(self, text: str, *, before: str) -> Reading:
        encoded = encode_text(self.tokenizer, text=text, before=before, limit=self.max_tokens)
        routing: dict[int, RoutingRecord] = {}
        answers: list[Any] = []
        handles = [layer.register_forward_hook(_keep_record(routing, i)) for i, layer in self._experts.items()]
        handles.append(self.model.register_forward_hook(lambda _, __, output: answers.append(output)))
        batch = {"input_ids": torch.tensor([encoded.ids], device=self.model.device)}
        try:
            captured = capture_bucket_inputs(self.model, batch=batch)
        finally:
            for handle in handles:
                handle.remove()
        answer = predict(self.model, tokenizer=self.tokenizer, text=encoded, output=answers[0])
        return Reading(encoded, {inputs.layer: inputs for inputs in captured}, routing, answer)

    def _maps(self, reading: Reading, *, layer: int, head: int) -> tuple[LayerInputs, BucketMaps]:
        if layer not in reading.buckets:
            known = ", ".join(map(str, reading.buckets)) or "none"
            raise InputError(f"layer: {layer} is no layer with buckets; those are, from 0: {known}")
        inputs = reading.buckets[layer]
        _check_range("head", head, limit=inputs.q.shape[1], what="heads")
        return inputs, _kept(reading.maps, layer, limit=KEPT_LAYERS, make=lambda: bucket_maps(inputs))

    def _side(self, reading: Reading) -> Json:
        return {
            "tokens": list(reading.text.tokens), "sentence": list(reading.text.sentence),
            "experts": [_routed(record, layer=layer) for layer, record in reading.routing.items()],
            "prediction": reading.prediction,
        }  # fmt: skip


def _keep_record(routing: dict[int, RoutingRecord], layer: int) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001 - a hook's signature
        routing[layer] = output[1]

    return hook


def _kept(cache: "OrderedDict[Any, ValueT]", key: Any, *, limit: int, make: Callable[[], ValueT]) -> ValueT:
    """Return what the cache holds or else make it, and forget what was not asked for longest."""
    if key not in cache:
        cache[key] = make()
    cache.move_to_end(key)
    while len(cache) > limit:
        cache.popitem(last=False)
    return cache[key]


def _routed(record: RoutingRecord, *, layer: int) -> Json:
    """Return each token's experts, the heaviest first, with gate (before selection) and weight (after)."""
    order = record.weights.argsort(dim=-1, descending=True, stable=True)
    experts = record.experts.gather(-1, order)
    gates, weights = record.scores.gather(-1, experts), record.weights.gather(-1, order)
    return {
        "layer": layer, "experts": experts.tolist(), "gates": _rounded(gates),
        "weights": _rounded(weights),
    }  # fmt: skip


def _difference(first: Reading, second: Reading) -> Json:
    """Pair the sentence's tokens of two readings, and count by layer those that go to other experts."""
    (start, end), (other_start, other_end) = first.text.sentence, second.text.sentence
    matcher = SequenceMatcher(
        None, first.text.tokens[start:end], second.text.tokens[other_start:other_end], autojunk=False
    )
    pairs = [
        (start + block.a + i, other_start + block.b + i)
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]
    mine, yours = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    changed = []
    for layer, record in first.routing.items():
        pair = (record.experts[mine].sort(-1).values, second.routing[layer].experts[yours].sort(-1).values)
        changed.append({"layer": layer, "changed": int((pair[0] != pair[1]).any(-1).sum()), "of": len(pairs)})
    return {"pairs": pairs, "changed": changed}


def _rounded(values: Tensor) -> Any:
    """Return nested lists with three significant digits."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [_digits(value) for value in values.tolist()]


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def _check_range(name: str, value: int, *, limit: int, what: str) -> None:
    if not 0 <= value < limit:
        raise InputError(f"{name}: {value} is not there; there are {limit:,} {what}, counted from 0")
