"""Stateless tensor functions: hashing, bucket attention, routing and expert products. No configuration objects."""

from sortyard.ops.bucket_attention import (
    BucketRelation,
    BucketSpec,
    bucket_attention,
    bucket_relation,
    dense_attention,
    expected_sparsity,
    relation_sparsity,
)
from sortyard.ops.expert_dispatch import Routing, route
from sortyard.ops.grouped_mlp import grouped_mlp
from sortyard.ops.lsh_hash import lsh_codes
from sortyard.ops.segments import Segments, make_segments

__all__ = [
    "BucketRelation",
    "BucketSpec",
    "Routing",
    "Segments",
    "bucket_attention",
    "bucket_relation",
    "dense_attention",
    "expected_sparsity",
    "grouped_mlp",
    "lsh_codes",
    "make_segments",
    "relation_sparsity",
    "route",
]
