"""What a layer attends with instead of its own core: a selection of pairs, with gradients through all of them."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sortyard.model.attention.layer import SelfAttention
from sortyard.ops import (
    BucketSpec,
    bucket_attention,
    bucket_relation,
    dense_attention,
    make_segments,
    relation_sparsity,
)
from sortyard.ops.bucket_attention.reference import attend_relation
from sortyard.ops.segments import Segments
from sortyard.studies.bench.fidelity_position_tree import position_relation
from sortyard.studies.bench.fidelity_selections import DEFAULT, LOCAL, RANDOM, ByMask, make_selection

__all__ = [
    "DENSE", "LOCAL", "POSITIONS", "RANDOM", "ROUNDS", "SELECTIONS", "TREE", "Setting", "attention_layers", "base_spec",
    "layer_sparsity", "make_core", "swap_attention",
]  # fmt: skip

Json = dict[str, Any]
_TREE = BucketSpec(dense_up_to=0)
_ROUNDS = BucketSpec(selection="rounds", dense_up_to=0)
DENSE, TREE, ROUNDS, POSITIONS = "dense", "tree", "rounds", "positions"
SELECTIONS = {
    TREE: "the content tree: exact near buckets and summaries of all else",
    ROUNDS: "two rounds of hash buckets and a window, without summaries",
    RANDOM: "keys drawn at random, other ones in each layer, without summaries",
    LOCAL: "a window around the query, without summaries",
    POSITIONS: "the tree's descent over consecutive blocks of positions, with summaries",
}


@dataclass(frozen=True)
class Setting:
    """One selection at one budget.

    Attributes:
        selection: "dense", or a key of `SELECTIONS`.
        spec: The bucket settings of tree, rounds and positions.
        keys: Keys a query of random and local.
    """

    selection: str
    spec: BucketSpec | None = None
    keys: int = 0

    def record(self) -> Json:
        """Return what was set, as JSON values."""
        if self.spec is None:
            return {"keys": self.keys} if self.keys else {}
        names = ["bucket_size", "local_window", "num_global_tokens"]
        names += ["num_hash_rounds"] if self.selection == ROUNDS else ["near_buckets", "beam", "query_chunk"]
        return {name: getattr(self.spec, name) for name in names}

    @classmethod
    def of_record(cls, selection: str, record: Json) -> "Setting":
        """Undo `record`."""
        if "keys" in record or not record:
            return cls(selection, keys=record.get("keys", 0))
        return cls(selection, spec=base_spec(selection, **record))


def base_spec(selection: str, **changes: int) -> BucketSpec:
    """The library's defaults for a selection, never dense, with some fields changed."""
    return replace(_ROUNDS if selection == ROUNDS else _TREE, **changes)  # type: ignore[arg-type]


class _Core(nn.Module):
    """What `SelfAttention` calls; the study's rows are one sequence each, without padding."""

    def sparsity(self, segments: Segments) -> float:
        """Nothing is told to the model; the study measures for itself."""
        del segments
        return 0.0


class _Dense(_Core):
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, segments: Segments, dropout_p: float,
        global_tokens: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B H T K"]:  # fmt: skip
        del global_tokens
        return dense_attention(q, k, v, segments=segments, causal=False, window=None, dropout_p=dropout_p)


class _Bucketed(_Core):
    def __init__(self, spec: BucketSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, segments: Segments, dropout_p: float,
        global_tokens: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B H T K"]:  # fmt: skip
        return bucket_attention(q, k, v, self.spec, segments=segments, dropout_p=dropout_p, global_tokens=global_tokens)


class _ByPosition(_Core):
    def __init__(self, spec: BucketSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, segments: Segments, dropout_p: float,
        global_tokens: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B H T K"]:  # fmt: skip
        del segments, dropout_p, global_tokens
        first, (rows, heads) = _first_token(q.shape[2]), q.shape[:2]
        outputs = []
        for row in range(rows):
            for head in range(heads):  # one relation of quadratic size at a time
                one = (slice(row, row + 1), slice(head, head + 1))
                relation = position_relation(q[one], k[one], self.spec, marked=first)
                outputs.append(attend_relation(q[one], k[one], v[one], relation))
        return torch.cat(outputs).view_as(v)


class _Masked(_Core):
    """Masks by length: a batch of another length has another mask."""

    def __init__(self, selection: str, *, keys: int, layer: int) -> None:
        super().__init__()
        self.selection, self.keys, self.layer = selection, keys, layer
        self._masks: dict[int, ByMask] = {}

    def mask(self, length: int, device: torch.device) -> ByMask:
        """The mask of a length, on the device that it is first asked for."""
        if length not in self._masks:
            found = make_selection(self.selection, DEFAULT, length=length, keys=self.keys, seed=self.layer)
            assert isinstance(found, ByMask)
            self._masks[length] = replace(found, mask=found.mask.to(device))
        return self._masks[length]

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, segments: Segments, dropout_p: float,
        global_tokens: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B H T K"]:  # fmt: skip
        del segments, dropout_p, global_tokens
        return self.mask(q.shape[2], q.device).attend(q, k, v)


def make_core(setting: Setting, *, layer: int) -> _Core:
    """The core of one layer."""
    if setting.selection == DENSE:
        return _Dense()
    if setting.spec is None:
        return _Masked(setting.selection, keys=setting.keys, layer=layer)
    return (_ByPosition if setting.selection == POSITIONS else _Bucketed)(setting.spec)


def swap_attention(model: nn.Module, setting: Setting) -> None:
    """Give every layer of a model the attention of a setting; no weight changes."""
    for layer, module in enumerate(attention_layers(model)):
        module.core = make_core(setting, layer=layer)  # type: ignore[assignment]


def attention_layers(model: nn.Module) -> list[SelfAttention]:
    """The attention modules, in order."""
    return [module for module in model.modules() if isinstance(module, SelfAttention)]


@torch.no_grad()
def layer_sparsity(setting: Setting, q: Float[Tensor, "1 H T K"], k: Float[Tensor, "1 H T K"], *, layer: int) -> float:
    """The share of pairs that a setting leaves out for the queries and keys of a layer; a summary counts as a key.

    Args:
        setting: The setting.
        q: Queries of one sequence.
        k: Its keys.
        layer: The layer's number.

    Returns:
        1 - (exact pairs + summaries) / pairs, over the heads given.
    """
    length = q.shape[2]
    if setting.selection == DENSE:
        return 0.0
    if setting.spec is None:
        core = _Masked(setting.selection, keys=setting.keys, layer=layer)
        return 1 - core.mask(length, q.device).pairs(q, k)[1] / length
    if setting.selection == POSITIONS:
        relation = position_relation(q, k, setting.spec, marked=_first_token(length))
    else:
        relation = bucket_relation(q, k, setting.spec)
    return relation_sparsity(relation, segments=make_segments(1, length, device=q.device))


def _first_token(length: int) -> Bool[Tensor, " T"]:
    return torch.arange(length) == 0
