"""The settings of bucket attention as one validated value; imports no torch."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Selection = Literal["tree", "rounds"]
Split = Literal["queries", "keys"]
Score = Literal["spread", "mean"]
HashName = Literal["gray", "cross_polytope", "e2lsh", "kmeans", "random", "sign_sum"]

_AT_LEAST = {
    "bucket_size": 1,
    "query_chunk": 1,
    "near_buckets": 1,
    "beam": 1,
    "power_steps": 0,
    "num_hash_rounds": 1,
    "local_window": 0,
    "num_global_tokens": 0,
    "dense_up_to": 0,
    "seed": 0,
}


@dataclass(frozen=True)
class BucketSpec:
    """Which pairs of a sequence are exact, which stand behind a summary, and nothing else.

    Args:
        selection: "tree" (balanced content tree with summaries) or "rounds" (hash rounds without summaries).
        bucket_size: Keys in a bucket, at least 1; the number of buckets follows the length.
        query_chunk: Consecutive queries that choose together (tree only), at least 1.
        near_buckets: Buckets a chunk reads exactly (tree only), at least 1.
        beam: Branches that stay open at a level (tree only), at least 1.
        power_steps: Power iterations for each split's direction (tree only); 0 splits along random directions.
        split: What a split's direction follows (tree only): "queries" weighs the keys' spread by what the sequence's
            queries see of it, "keys" takes it as it is.
        score: How a chunk ranks branches (tree only): "spread" adds the log of a branch's spread to the mean query's
            logit for its mean key, "mean" takes the logit alone. Causal trees always do that.
        hash: The hash of a round (rounds only).
        num_hash_rounds: Hash functions whose buckets are united (rounds only), at least 1.
        multiset: Count a pair once for each part that contains it, instead of once (rounds only).
        local_window: Half-width w of the exact window |i - j| <= w in positions; 0 keeps the token itself.
        num_global_tokens: First tokens of a sequence that every query reads exactly.
        target_sparsity: Share of pairs to leave out, in (0, 1); replaces near_buckets (tree) or bucket_size (rounds).
            A sequence whose window, global tokens and one bucket already hold more gets the sparsest that is possible.
        num_buckets: A number of buckets that does not follow the length, at least 1 (tree: a power of two).
        dense_up_to: Sequences of at most this many tokens get dense attention.
        seed: Seed of every direction and projection.

    Raises:
        ValueError: a field is out of its range, or two fields exclude each other.
    """

    selection: Selection = "tree"
    bucket_size: int = 16
    query_chunk: int = 64
    near_buckets: int = 4
    beam: int = 8
    power_steps: int = 1
    split: Split = "queries"
    score: Score = "spread"
    hash: HashName = "gray"
    num_hash_rounds: int = 2
    multiset: bool = False
    local_window: int = 16
    num_global_tokens: int = 1
    target_sparsity: float | None = None
    num_buckets: int | None = None
    dense_up_to: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.selection not in get_args(Selection):
            raise ValueError(f"selection is {self.selection!r}; choose one of {', '.join(get_args(Selection))}")
        for field, choices in {"split": Split, "score": Score, "hash": HashName}.items():
            if getattr(self, field) not in get_args(choices):
                raise ValueError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(get_args(choices))}")
        for field, low in _AT_LEAST.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{field} is {value!r}; it must be an integer of at least {low}")
        self._check_bucket_rules()

    def _check_bucket_rules(self) -> None:
        target, buckets = self.target_sparsity, self.num_buckets
        if target is not None and not 0.0 < target < 1.0:
            raise ValueError(f"target_sparsity is {target!r}; it must lie between 0 and 1 (exclusive), or be left out")
        if buckets is not None and buckets < 1:
            raise ValueError(f"num_buckets is {buckets!r}; it must be at least 1, or be left out")
        if target is not None and buckets is not None:
            raise ValueError(
                f"num_buckets is {buckets} and target_sparsity is {target}; both decide the buckets: leave one out"
            )
        if buckets is not None and self.selection == "tree" and buckets & (buckets - 1):
            nearest = 2 ** round(math.log2(buckets))
            raise ValueError(
                f"num_buckets is {buckets}; selection 'tree' halves its nodes, so it must be a power of two, "
                f"for example {nearest}"
            )
        if self.multiset and self.selection == "tree":
            raise ValueError("multiset is True; selection 'tree' meets a pair once only: use selection 'rounds'")
