"""Choices and errors of the Triton kernels on a device, beside plain torch's: for device_attention.py."""

import json
from dataclasses import replace

import torch
from torch import Tensor

from sortyard.ops import BucketSpec, bucket_attention, bucket_relation
from sortyard.ops.bucket_attention.reference import attend_relation
from sortyard.ops.bucket_attention.spec import Score, Split


def draw(length: int, *, heads: int, width: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Queries, keys and values laid out as a model's projections are: [B, T, H, K], seen as [B, H, T, K]."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, length, heads, width, generator=generator).to(device, dtype) for _ in range(3)]
    return [x.transpose(1, 2).requires_grad_() for x in made]


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def check_choice(
    length: int, *, split: Split, score: Score, spec: BucketSpec, heads: int, width: int, device: str
) -> dict[str, object]:
    """Whether the kernels choose in float64 what plain torch chooses."""
    q, k, _ = draw(length, heads=heads, width=width, dtype=torch.float64, device=device)
    spec = replace(spec, split=split, score=score)
    ours, plain = (bucket_relation(q, k, spec, backend=backend) for backend in ("triton", "cpu"))
    passes = torch.equal(ours.near, plain.near) and torch.equal(ours.counts, plain.counts)
    found = {"length": length, "split": split, "score": score, "passes": passes}
    print("choice", json.dumps(found), flush=True)
    return found


def check_parity(
    length: int, dtype: torch.dtype, *, spec: BucketSpec, heads: int, width: int, causal: bool, device: str
) -> dict[str, object]:
    """Largest errors against float64 of ours and of dense torch in the same dtype, from our own relation."""
    inputs = draw(length, heads=heads, width=width, dtype=dtype, device=device)
    relation = bucket_relation(inputs[0], inputs[1], spec, causal=causal, backend="triton")
    ours = gradients(bucket_attention(*inputs, spec, causal=causal, backend="triton"), inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    truth = gradients(attend_relation(*exact, relation), exact)
    twin = gradients(dense_in_dtype(inputs, relation.near, relation.members, relation.counts), inputs)
    names = ("out", "dq", "dk", "dv")
    errors = {
        name: [float((result - true).abs().max()) for result in (mine, theirs)]
        for name, mine, theirs, true in zip(names, ours, twin, truth, strict=True)
    }
    # Few roundings of few numbers make a chancy ratio: errors of some units in the last place are let pass; more of
    # them in float32, whose sums are no wider than what is stored.
    units = 8 if dtype == torch.float32 else 4
    floors = [units * torch.finfo(dtype).eps * float(true.abs().max()) for true in truth]
    passes = all(errors[name][0] <= max(2 * errors[name][1], floor) for name, floor in zip(names, floors, strict=True))
    found = {
        "length": length, "dtype": str(dtype), "causal": causal, "bucket_size": spec.bucket_size, "head_width": width,
        "errors": errors, "passes": passes,
    }  # fmt: skip
    print("parity", json.dumps(found), flush=True)
    return found


def dense_in_dtype(inputs: list[Tensor], near: Tensor, members: Tensor, counts: Tensor) -> Tensor:
    """Materialised attention from a relation, every product in the inputs' dtype."""
    q, k, v = inputs
    share = (members / members.sum(-1, keepdim=True).clamp_min(1)).to(q.dtype)
    keys, values = (torch.cat([x, share @ x], -2) for x in (k, v))
    bias = torch.cat([near.float(), counts.float()], -1).log()
    weights = (q @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(-1)
    return weights.to(q.dtype) @ values
