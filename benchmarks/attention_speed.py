"""Bucket attention's plain paths against dense SDPA: forward and backward, ratios from alternated runs in one process.

Run: python benchmarks/attention_speed.py [--threads 1]
Writes benchmarks/results/attention_speed.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F

from sortyard.ops import BucketSpec, bucket_attention
from sortyard.training.environment import describe_environment

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = {256: 9, 512: 9, 1024: 7, 2048: 5, 4096: 3, 8192: 3}  # repetitions
HEADS, WIDTH, SEED = 8, 64, 0
SPECS = {
    "tree": BucketSpec(dense_up_to=0),
    "rounds": BucketSpec(selection="rounds", bucket_size=32, num_hash_rounds=2, dense_up_to=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    environment = describe_environment(seed=SEED, device="cpu", data_fingerprint="", command=["attention_speed.py"])
    found = {
        "what": "seconds of dense SDPA over those of bucket attention, forward and backward, float32; above 1 = faster",
        "script": "benchmarks/attention_speed.py",
        "date": datetime.now(UTC).date().isoformat(),
        "threads": threads,
        "shape": {"batch": 1, "heads": HEADS, "head_width": WIDTH},
        "environment": {key: environment[key] for key in ("versions", "python", "platform", "machine")},
        "lengths": {length: measure(length, repetitions) for length, repetitions in LENGTHS.items()},
    }
    path = ROOT / "benchmarks" / "results" / "attention_speed.json"
    path.write_text(json.dumps(found, indent=2) + "\n")


def measure(length: int, repetitions: int) -> dict[str, object]:
    """Median seconds of each, and the median and range of the ratios of neighbouring runs."""
    generator = torch.Generator().manual_seed(SEED)
    inputs = [torch.randn(1, HEADS, length, WIDTH, generator=generator, requires_grad=True) for _ in range(3)]
    calls: dict[str, Callable[..., torch.Tensor]] = {"dense": F.scaled_dot_product_attention}
    calls |= {name: lambda q, k, v, spec=spec: bucket_attention(q, k, v, spec) for name, spec in SPECS.items()}
    for call in calls.values():
        seconds(call, inputs)
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            runs[name].append(seconds(call, inputs))
    result: dict[str, object] = {"seconds": {name: statistics.median(times) for name, times in runs.items()}}
    for name in SPECS:
        ratios = [dense / own for dense, own in zip(runs["dense"], runs[name], strict=True)]
        result[name] = {"ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
    print(length, {name: round(result[name]["ratio"], 2) for name in SPECS}, flush=True)  # type: ignore[index]
    return result


def seconds(call: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> float:
    start = time.perf_counter()
    call(*inputs).sum().backward()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
