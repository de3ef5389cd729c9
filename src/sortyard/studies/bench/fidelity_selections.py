"""What fidelity compares: selections of pairs, each as a function of queries and keys, and their budgets."""

from dataclasses import dataclass, replace
from typing import Protocol, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sortyard.ops import BucketSpec, bucket_attention, bucket_relation, make_segments, relation_sparsity
from sortyard.ops.bucket_attention.reference import attend_relation
from sortyard.ops.bucket_attention.spec import HashName
from sortyard.studies.bench.fidelity_position_tree import position_relation

TREE, ROUNDS, POSITION, ORACLE, RANDOM, LOCAL = "tree", "rounds", "position-tree", "oracle", "random", "local"
DEFAULT = "default"
POINTS = ("small", DEFAULT, "large", "largest")
MIDDLE_POINTS = (DEFAULT, "large")
HASHES: tuple[HashName, ...] = get_args(HashName)
CONTROLS = (ORACLE, RANDOM, LOCAL)

_PLAIN = BucketSpec(dense_up_to=0)
_NARROW = replace(_PLAIN, bucket_size=8, local_window=8, power_steps=2)
_FINE = replace(_PLAIN, bucket_size=4, query_chunk=16, local_window=8, power_steps=2)
_BY_KEYS = replace(_PLAIN, split="keys", score="mean")
_ROUNDS_OF = {f"{ROUNDS}-{name}": replace(_PLAIN, selection="rounds", hash=name) for name in HASHES}
# Near buckets and beam at each point: n = 2,048 has about 85, 130, 210 and 370 keys a query.
_TREES = {
    TREE: (_PLAIN, ((2, 4), (4, 8), (8, 16), (16, 32))),
    "tree-by-keys": (_BY_KEYS, ((2, 4), (4, 8), (8, 16), (16, 32))),
    "tree-narrow": (_NARROW, ((4, 6), (8, 10), (20, 16), (32, 32))),
    "tree-fine": (_FINE, ((6, 6), (12, 12), (24, 24), (34, 32))),
}
NOTES = {
    TREE: "the default: buckets of 16, chunks of 64 queries",
    "tree-by-keys": "the default without a look at the queries: splits and scores by the keys alone",
    "tree-narrow": "buckets of 8, chunks of 64, two power steps, window 8",
    "tree-fine": "buckets of 4, chunks of 16, two power steps, window 8",
    POSITION: "the default's descent over consecutive blocks of positions instead of the content tree",
    ORACLE: "each query's largest logits, by looking at all of them; no summaries",
    RANDOM: "keys drawn at random, the same for all heads; no summaries",
    LOCAL: "a window around the query; no summaries",
} | {f"rounds-{name}": f"two rounds of the hash {name} and the window; no summaries" for name in HASHES}
FAMILIES = tuple(NOTES)


class Selection(Protocol):
    """Which pairs of one sequence are exact, and the attention that follows."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return outputs [1, H, T, K]."""
        ...

    def pairs(self, q: Tensor, k: Tensor) -> tuple[Bool[Tensor, "1 #H T T"], float]:
        """Return the exact pairs, and the mean keys a query, where a summary counts as one key."""
        ...


@dataclass(frozen=True)
class BySpec:
    """A selection of the library; the sequence's last token is global besides the first."""

    spec: BucketSpec

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the operation's own output."""
        return bucket_attention(q, k, v, self.spec, global_tokens=_last(q))

    def pairs(self, q: Tensor, k: Tensor) -> tuple[Bool[Tensor, "1 #H T T"], float]:
        """Ask for the relation head by head, as it is of quadratic size."""
        T = q.shape[2]
        segments = make_segments(1, T, device=q.device)
        near, sparsities = [], []
        for head in range(q.shape[1]):
            one = slice(head, head + 1)
            relation = bucket_relation(q[:, one], k[:, one], self.spec, global_tokens=_last(q))
            near.append(relation.near)
            sparsities.append(relation_sparsity(relation, segments=segments))
        return torch.cat(near, 1), T * (1 - sum(sparsities) / len(sparsities))


@dataclass(frozen=True)
class ByPosition:
    """The tree's descent over blocks of positions."""

    spec: BucketSpec

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute densely from the relation."""
        marked, outputs = _ends(q.shape[2]), []
        for head in range(q.shape[1]):  # one at a time stays in the cache
            one = slice(head, head + 1)
            relation = position_relation(q[:, one], k[:, one], self.spec, marked=marked)
            outputs.append(attend_relation(q[:, one], k[:, one], v[:, one], relation))
        return torch.cat(outputs, 1)

    def pairs(self, q: Tensor, k: Tensor) -> tuple[Bool[Tensor, "1 #H T T"], float]:
        """Return the relation's exact pairs."""
        relation = position_relation(q, k, self.spec, marked=_ends(q.shape[2]))
        sparsity = relation_sparsity(relation, segments=make_segments(1, q.shape[2], device=q.device))
        return relation.near, q.shape[2] * (1 - sparsity)


@dataclass(frozen=True)
class ByMask:
    """The same exact pairs [T, T] whatever the queries and keys are."""

    mask: Bool[Tensor, "T T"]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return masked attention."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

    def pairs(self, q: Tensor, k: Tensor) -> tuple[Bool[Tensor, "1 #H T T"], float]:
        """Return the mask."""
        del q, k
        return self.mask[None, None], float(self.mask.sum(-1).float().mean())


@dataclass(frozen=True)
class ByOracle:
    """Each query's `keys` largest logits."""

    keys: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return attention over the largest logits, head by head, as all of them are looked at."""
        heads = zip(q[0], k[0], v[0], strict=True)
        outputs: list[Tensor] = [self._logits(q, k).softmax(-1) @ v for q, k, v in heads]
        return torch.stack(outputs)[None]

    def pairs(self, q: Tensor, k: Tensor) -> tuple[Bool[Tensor, "1 #H T T"], float]:
        """Return the largest logits' places."""
        near = torch.stack([self._logits(q, k) > -torch.inf for q, k in zip(q[0], k[0], strict=True)])
        return near[None], float(near.sum(-1).float().mean())

    def _logits(self, q: Float[Tensor, "T K"], k: Float[Tensor, "T K"]) -> Float[Tensor, "T T"]:
        logits: Tensor = q @ k.T * q.shape[-1] ** -0.5
        least = logits.topk(min(self.keys, len(k)), -1).values[:, -1:]
        return logits.masked_fill(logits < least, -torch.inf)


def points_of(family: str) -> tuple[str, ...]:
    """The budgets at which a family is measured: all four, or two where more would tell nothing new."""
    is_aside = family == POSITION or (family.startswith(ROUNDS) and family != "rounds-gray")
    return MIDDLE_POINTS if is_aside else POINTS


def make_selection(family: str, point: str, *, length: int, keys: float | None, seed: int) -> Selection:
    """Build one cell's selection.

    Args:
        family: One of FAMILIES.
        point: One of POINTS.
        length: Tokens of the sequence.
        keys: Mean keys a query of the default tree at this point, which rounds and controls are given too; trees do
            without.
        seed: Seed of directions, projections and random keys.

    Returns:
        The selection.
    """
    number = POINTS.index(point)
    if family in _TREES or family == POSITION:
        spec, budgets = _TREES[TREE if family == POSITION else family]
        near, beam = budgets[number]
        chosen = replace(spec, near_buckets=near, beam=beam, seed=seed)
        return ByPosition(chosen) if family == POSITION else BySpec(chosen)
    assert keys is not None
    if family == ORACLE:
        return ByOracle(round(keys))
    if family == LOCAL:
        return ByMask(_window(length, round(keys) - 2))
    if family == RANDOM:
        return ByMask(_random_pairs(length, max(1, round(keys) - 2), seed=seed))
    size = max(1, round((keys - 2 * _PLAIN.local_window - 3) / (2 * _PLAIN.num_hash_rounds)))
    return BySpec(replace(_ROUNDS_OF[family], bucket_size=size, seed=seed))


def _window(length: int, keys: int) -> Bool[Tensor, "T T"]:
    """The window that comes closest to `keys` a query, both ends of the sequence considered."""

    def held(width: int) -> float:
        return 2 * width + 1 - width * (width + 1) / length

    width = min(range(length), key=lambda width: abs(held(width) - keys))
    position = torch.arange(length)
    return ((position[:, None] - position).abs() <= width) | _ends(length)


def _random_pairs(length: int, keys: int, *, seed: int) -> Bool[Tensor, "T T"]:
    drawn = torch.rand(length, length, generator=torch.Generator().manual_seed(seed))
    near = torch.zeros(length, length, dtype=torch.bool)
    return near.scatter_(-1, drawn.topk(min(keys, length), -1).indices, True) | _ends(length)


def _ends(length: int) -> Bool[Tensor, " T"]:
    marked = torch.zeros(length, dtype=torch.bool)
    marked[[0, -1]] = True
    return marked


def _last(q: Tensor) -> Bool[Tensor, "1 T"]:
    marked = torch.zeros(1, q.shape[2], dtype=torch.bool, device=q.device)
    marked[:, -1] = True
    return marked
