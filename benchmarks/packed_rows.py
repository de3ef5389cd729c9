"""Dense attention over rows packed with short sequences: a mask over the whole row against sequences taken out of it.

Lengths are log-normal around a mean; forward and backward, 12 heads of 64, float32 on a processor and bfloat16 on a
GPU. The two sides alternate; times are medians, ratios those of the medians, with the smallest and largest of the
rounds beside them.
`are_taken_out` says which of the two a model takes.

Run: python benchmarks/packed_rows.py [--rounds 9] [--threads 2] [--device cuda] [--out FILE]
Writes benchmarks/results/packed_rows.json, on a GPU device_packed_rows.json, unless told otherwise.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from device_runs import begin_result, save
from torch import Tensor

from runs import ROOT
from sortyard.ops import make_segments
from sortyard.ops.bucket_attention import dense
from sortyard.ops.segments import Segments

SEED, HEADS, WIDTH, SPREAD = 0, 12, 64, 0.5
CASES = [(32, 128, 40), (8, 512, 64), (8, 512, 128), (8, 512, 256), (2, 2048, 128), (2, 2048, 512), (1, 4096, 100)]
CASES += [(1, 4096, 1000), (1, 8192, 100)]


def packed(rows: int, length: int, mean: int, *, device: str) -> Segments:
    """Rows full of sequences; the last one of each is cut off."""
    generator = torch.Generator().manual_seed(SEED)
    bounds = [0]
    for row in range(rows):
        at = 0
        while at < length:
            drawn = mean * float(torch.randn(1, generator=generator).mul(SPREAD).exp())
            at = min(length, at + max(8, int(drawn)))
            bounds.append(row * length + at)
    return make_segments(rows, length, cu_seqlens=torch.tensor(bounds), device=device)


def seconds(attend: Callable[..., Tensor], x: Tensor, segments: Segments) -> float:
    segments.kept.clear()
    synchronize(x.device)
    started = time.perf_counter()
    attend(*x, segments=segments).sum().backward()
    synchronize(x.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def masked(q: Tensor, k: Tensor, v: Tensor, *, segments: Segments) -> Tensor:
    return dense._attend(q, k, v, segments=segments, causal=False, window=None, dropout_p=0.0)


def taken_out(q: Tensor, k: Tensor, v: Tensor, *, segments: Segments) -> Tensor:
    return dense._attend_groups(q, k, v, segments=segments, causal=False, dropout_p=0.0)


def measure(case: tuple[int, int, int], *, rounds: int, device: str) -> dict[str, Any]:
    rows, length, mean = case
    segments = packed(*case, device=device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    x = torch.randn(3, rows, HEADS, length, WIDTH, device=device, dtype=dtype, requires_grad=True)
    worst = float((masked(*x, segments=segments) - taken_out(*x, segments=segments)).detach().abs().max())
    assert worst < (1e-5 if device == "cpu" else 0.05), worst
    sides: dict[Callable[..., Tensor], list[float]] = {masked: [], taken_out: []}
    for attend in sides:
        seconds(attend, x, segments)
    for _ in range(rounds):
        for attend, times in sides.items():
            times.append(seconds(attend, x, segments))
    ratios = [a / b for a, b in zip(*sides.values(), strict=True)]
    return {
        "rows": rows,
        "length": length,
        "mean_sequence": mean,
        "sequences": len(segments.lengths),
        "hidden_pairs": 1 - sum(n * n for n in segments.lengths) / (rows * length**2),
        "are_taken_out": dense._pays_by_groups(segments),
        "masked_seconds": median(sides[masked]),
        "taken_out_seconds": median(sides[taken_out]),
        "times_as_fast": median(sides[masked]) / median(sides[taken_out]),
        "times_as_fast_range": [min(ratios), max(ratios)],
    }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", type=int, default=9)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    words.add_argument("--out", type=Path)
    options = words.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    found = []
    for case in CASES:
        found.append(measure(case, rounds=options.rounds, device=options.device))
        print(found[-1], flush=True)
    name = "packed_rows" if options.device == "cpu" else "device_packed_rows"
    device = "cpu" if options.device == "cpu" else f"cuda: {torch.cuda.get_device_name()}"
    what = "seconds of dense attention over packed rows, whole and in parts"
    result = begin_result("packed_rows", device=device, seed=SEED, what=what, facts={})
    save(options.out or ROOT / "benchmarks" / "results" / f"{name}.json", result | {"cases": found})


if __name__ == "__main__":
    main()
