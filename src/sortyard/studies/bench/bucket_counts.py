"""The sides of `bench dynamic-buckets`; apart from the study, so that a memory measurement's child loads little."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sortyard.ops import BucketSpec, bucket_attention
from sortyard.studies.bench.cases import Case, Inputs, Work, make_call, make_inputs
from sortyard.studies.bench.memory import Probe

FIXED_BUCKETS = 64  # the seed's number
_WARM_LENGTHS = (128, 256)


def specs_of(selection: str) -> dict[str, BucketSpec]:
    """The two sides: the default specification, and the same with the seed's fixed number of buckets."""
    following = BucketSpec(selection=selection, dense_up_to=0)  # type: ignore[arg-type]
    return {"following": following, "fixed": replace(following, num_buckets=FIXED_BUCKETS)}


def dynamic_probe(*, selection: str, side: str, lengths: Sequence[int], **fields: Any) -> Probe:
    """What the memory measurement's child runs: one side on one load, and the same on a small load."""
    spec = specs_of(selection)[side]
    calls = []
    for load in (lengths, _WARM_LENGTHS):
        case = Case(length=sum(load), **fields)
        calls.append(make_call(packed_work(make_inputs(case), spec, load), direction=case.direction))
    return Probe(call=calls[0], warm=calls[1])


def packed_work(inputs: Inputs, spec: BucketSpec, lengths: Sequence[int]) -> Work:
    """Attention over sequences packed into one row."""
    q, k, v = inputs.q, inputs.k, inputs.v
    bounds = torch.tensor([0, *lengths], device=q.device).cumsum(0)
    cu_seqlens = bounds.to(torch.int32) if len(lengths) > 1 else None
    return Work(lambda: bucket_attention(q, k, v, spec, cu_seqlens=cu_seqlens), (q, k, v), inputs.gradient)
