"""Dense attention over rows packed with short sequences: a mask over the whole row against sequences taken out of it.

Lengths are log-normal around a mean; forward and backward, 12 heads of 64, float32, on the processor. The two sides
alternate; times are medians, ratios those of the medians, with the smallest and largest of the rounds beside them.
Rows below 512 positions, or where a mask hides less than half of the pairs, stay whole: there both sides are one.

Run: python benchmarks/packed_rows.py [--rounds 9] [--threads 2]
Writes benchmarks/results/packed_rows.json.
"""

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch
from torch import Tensor

from runs import write_result
from sortyard.ops import dense_attention, make_segments
from sortyard.ops.bucket_attention import dense
from sortyard.ops.segments import Segments
from sortyard.runs.environment import describe_environment

SEED, HEADS, WIDTH, SPREAD = 0, 12, 64, 0.5
CASES = [(32, 128, 40), (8, 512, 64), (8, 512, 128), (8, 512, 256), (2, 2048, 128), (2, 2048, 512), (1, 4096, 100)]
CASES += [(1, 4096, 1000), (1, 8192, 100)]


def packed(rows: int, length: int, mean: int) -> Segments:
    """Rows full of sequences; the last one of each is cut off."""
    generator = torch.Generator().manual_seed(SEED)
    bounds = [0]
    for row in range(rows):
        at = 0
        while at < length:
            drawn = mean * float(torch.randn(1, generator=generator).mul(SPREAD).exp())
            at = min(length, at + max(8, int(drawn)))
            bounds.append(row * length + at)
    return make_segments(rows, length, cu_seqlens=torch.tensor(bounds), device="cpu")


def seconds(attend: Callable[..., Tensor], x: Tensor, segments: Segments) -> float:
    segments.kept.clear()
    started = time.perf_counter()
    attend(*x, segments=segments).sum().backward()
    return time.perf_counter() - started


def masked(q: Tensor, k: Tensor, v: Tensor, *, segments: Segments) -> Tensor:
    return dense._attend(q, k, v, segments=segments, causal=False, window=None, dropout_p=0.0)


def taken_out(q: Tensor, k: Tensor, v: Tensor, *, segments: Segments) -> Tensor:
    return dense_attention(q, k, v, segments=segments)


def measure(case: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    rows, length, mean = case
    segments = packed(*case)
    x = torch.randn(3, rows, HEADS, length, WIDTH, requires_grad=True)
    worst = float((masked(*x, segments=segments) - taken_out(*x, segments=segments)).detach().abs().max())
    assert worst < 1e-5, worst
    sides: dict[Callable[..., Tensor], list[float]] = {masked: [], taken_out: []}
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
    options = words.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    found = []
    for case in CASES:
        found.append(measure(case, options.rounds))
        print(found[-1], flush=True)
    environment = describe_environment(
        seed=SEED, device="cpu", data_fingerprint="random lengths", command=["packed_rows.py"]
    )
    date = datetime.now(UTC).date().isoformat()
    write_result("packed_rows", {"date": date, "environment": environment, "cases": found})


if __name__ == "__main__":
    main()
