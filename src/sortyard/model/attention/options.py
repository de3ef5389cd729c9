"""The attention's settings; imports no torch."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from sortyard.model.attention.crossover import dense_up_to
from sortyard.options import Options

if TYPE_CHECKING:
    from sortyard.ops.bucket_attention.spec import BucketSpec
else:  # a name to look up when it is asked for: importing it here would import torch
    BucketSpec = "sortyard.ops.bucket_attention.spec.BucketSpec"


class AttentionOptions(Options):
    """Bucket or dense attention, and how the buckets are made."""

    attention: Literal["bucket", "dense"] = Field(
        "bucket", description="bucket attention, or dense attention throughout"
    )
    selection: Literal["tree", "rounds"] = Field(
        "tree", description="how keys are chosen: a content tree with summaries, or LSH rounds without"
    )
    bucket_size: int = Field(
        16, ge=1, le=65_536, description="keys in a bucket; the number of buckets follows the length"
    )
    query_chunk: int = Field(64, ge=1, le=65_536, description="consecutive queries that choose together (tree)")
    near_buckets: int = Field(4, ge=1, le=65_536, description="buckets a query chunk reads exactly (tree)")
    beam: int = Field(8, ge=1, le=65_536, description="branches that stay open at each level of the descent (tree)")
    power_steps: int = Field(
        1, ge=0, le=16, description="power iterations per split direction (tree); 0 splits along random directions"
    )
    tree_split: Literal["queries", "keys"] = Field(
        "queries",
        description="what a split follows (tree): the keys' spread as the sequence's queries see it, or as it is",
    )
    tree_score: Literal["spread", "mean"] = Field(
        "spread",
        description="how branches are ranked (tree): by the mean key's logit, with or without the log of the spread",
    )
    hash: Literal["gray", "cross_polytope", "e2lsh", "kmeans", "random", "sign_sum"] = Field(
        "gray", description="hash function of a round (rounds); random and sign_sum are controls"
    )
    num_hash_rounds: int = Field(2, ge=1, le=64, description="hash functions whose buckets are united (rounds)")
    multiset: bool = Field(
        False, description="count a pair once for each round that meets it, instead of once (rounds)"
    )
    local_window: int = Field(16, ge=0, le=1_048_576, description="exact keys on each side of a query, in positions")
    num_global_tokens: int = Field(1, ge=0, le=4_096, description="first tokens that every query reads exactly")
    target_sparsity: float | None = Field(
        None, gt=0.0, lt=1.0, description="share of query-key pairs to leave out, instead of a fixed bucket budget"
    )
    num_buckets: int | None = Field(
        None, ge=1, le=1_048_576, description="fixed number of buckets that does not follow the length (an ablation)"
    )
    dense_up_to: int | None = Field(
        None,
        ge=0,
        le=1_048_576,
        description="sequences of at most this many tokens are dense; left out, up to where dense is faster (a table)",
    )
    bucket_seed: int = Field(
        0, ge=0, le=2**31 - 1, description="seed of the tree's directions and the hash projections"
    )

    @model_validator(mode="after")
    def _check_attention_rules(self) -> "AttentionOptions":
        if self.target_sparsity is not None and self.num_buckets is not None:
            raise ValueError(
                f"num_buckets is {self.num_buckets} and target_sparsity is {self.target_sparsity}; "
                "both decide the buckets: leave one out"
            )
        if self.selection == "tree" and self.num_buckets is not None and self.num_buckets & (self.num_buckets - 1):
            raise ValueError(f"num_buckets is {self.num_buckets}; selection 'tree' needs a power of two")
        if self.selection == "tree" and self.multiset:
            raise ValueError("multiset is true; selection 'tree' meets a pair once only: use selection 'rounds'")
        return self

    def to_spec(self, *, device: str = "cpu") -> BucketSpec:
        """The same settings as the value that the attention operation takes.

        Args:
            device: Type of the device, which decides `dense_up_to` if that was left out.
        """
        from sortyard.ops.bucket_attention.spec import BucketSpec

        return BucketSpec(
            selection=self.selection,
            bucket_size=self.bucket_size,
            query_chunk=self.query_chunk,
            near_buckets=self.near_buckets,
            beam=self.beam,
            power_steps=self.power_steps,
            split=self.tree_split,
            score=self.tree_score,
            hash=self.hash,
            num_hash_rounds=self.num_hash_rounds,
            multiset=self.multiset,
            local_window=self.local_window,
            num_global_tokens=self.num_global_tokens,
            target_sparsity=self.target_sparsity,
            num_buckets=self.num_buckets,
            dense_up_to=self._dense_up_to(device),
            seed=self.bucket_seed,
        )

    def _dense_up_to(self, device: str) -> int:
        if self.dense_up_to is not None:
            return self.dense_up_to
        has_own_budget = self.target_sparsity is not None or self.num_buckets is not None
        return dense_up_to(self.selection, device=device, has_own_budget=has_own_budget)
