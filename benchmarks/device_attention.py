"""Tree attention's Triton kernels on a GPU: choices and errors there, then time against flash SDPA and flex_attention.

Run on a machine with a GPU: python benchmarks/device_attention.py [--out FILE] [--parts choice parity lengths flex]
[--minutes 9]   (no network; what the file says of another part stays, if it is of this machine and code)
Run anywhere, small and slow: python benchmarks/device_attention.py --interpret --out FILE
Writes benchmarks/results/device_attention.json unless told otherwise; exit status 1 where a choice or an error is off.
"""

# ruff: noqa: E402
# Triton decides at import whether its functions are interpreted, so the variable comes before the imports.

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

INTERPRET = "--interpret" in sys.argv
if INTERPRET:
    os.environ["TRITON_INTERPRET"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import torch
import torch.nn.functional as F
import triton
from device_parity import check_choice, check_parity, draw
from device_runs import begin_result, has_time, kept_parts, read_arguments, save
from torch import Tensor

from sortyard.ops import BucketSpec, bucket_attention, expected_sparsity, make_segments
from sortyard.ops.bucket_attention.groups import make_groups
from sortyard.ops.bucket_attention.spec import Score, Split
from sortyard.ops.bucket_attention.triton_backend.problem import make_problem
from sortyard.ops.bucket_attention.triton_backend.tree import descend, sort_keys, sum_tree

DEVICE = "cpu" if INTERPRET else "cuda"
BYTES_A_SECOND = 3.35e12  # H100 SXM, from its data sheet
PARTS = ("choice", "parity", "lengths", "flex")
SEED = 0
HEADS, WIDTH = (2, 16) if INTERPRET else (16, 64)
SPEC = BucketSpec(bucket_size=8, query_chunk=16, dense_up_to=20) if INTERPRET else BucketSpec()
# Narrow leaves, and heads whose width is no power of two: what small models have.
NARROW = replace(SPEC, bucket_size=4, query_chunk=16, near_buckets=8, beam=6, local_window=8)
PARITY_SPECS = ((SPEC, WIDTH), (NARROW, WIDTH // 2), (SPEC, 3 * WIDTH // 4))
LENGTHS = {96: 1} if INTERPRET else {16_384: 15, 65_536: 9, 131_072: 5}  # repetitions
FLEX_LENGTH = 96 if INTERPRET else 65_536
PARITY_LENGTHS = (65, 90) if INTERPRET else (1000, 5003)
PARITY_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DTYPE = torch.bfloat16
Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> int:
    args = read_arguments(__doc__, name="device_attention", parts=PARTS)
    path: Path = args.out
    may_begin = partial(has_time, minutes=args.minutes, interpreted=INTERPRET)
    name = "cpu" if INTERPRET else f"cuda: {torch.cuda.get_device_name()}"
    found = begin_result(
        "device_attention", device=name, seed=SEED,
        what="tree attention in Triton: errors on the device, then seconds beside flash SDPA and flex_attention",
        facts={
            "interpreted": INTERPRET,
            "shape": {"batch": 1, "heads": HEADS, "head_width": WIDTH, "dtype": str(DTYPE)},
            "triton": triton.__version__,
        },
    )  # fmt: skip
    found |= kept_parts(path, found, parts=PARTS, asked=args.parts)
    if "choice" in args.parts:
        found["choice"] = [
            check_choice(length, split=split, score=score, spec=SPEC, heads=2, width=WIDTH, device=DEVICE)
            for split in get_args(Split)
            for score in get_args(Score)
            for length in PARITY_LENGTHS
            if may_begin(f"choice {length} {split} {score}", 5)
        ]
        save(path, found)
    if "parity" in args.parts:
        found["parity"] = [
            check_parity(length, dtype, spec=spec, heads=2, width=width, causal=causal, device=DEVICE)
            for dtype in PARITY_DTYPES
            for spec, width in PARITY_SPECS
            for causal in (False, True)
            for length in PARITY_LENGTHS
            if may_begin(f"parity {length} {dtype}", 5)
        ]
        save(path, found)
    if "lengths" in args.parts:
        found["lengths"] = {}
    for length, repetitions in LENGTHS.items() if "lengths" in args.parts else ():
        if may_begin(f"timing {length}", 12):
            found["lengths"][length] = measure(length, repetitions, peers={"flash": flash})
            save(path, found)
    if "flex" in args.parts and may_begin("flex", 40):
        found["flex"] = {FLEX_LENGTH: measure(FLEX_LENGTH, LENGTHS[FLEX_LENGTH], peers={"flex": flex(FLEX_LENGTH)})}
        save(path, found)
    print_table(found.get("lengths", {}))
    print_table(found.get("flex", {}))
    return 0 if all(case["passes"] for part in PARTS[:2] for case in found.get(part, [])) else 1


def measure(length: int, repetitions: int, *, peers: dict[str, Call]) -> dict[str, Any]:
    """Median seconds of every call, forward and forward with backward, alternated; then ours in parts."""
    inputs = draw(length, heads=HEADS, width=WIDTH, dtype=DTYPE, device=DEVICE)
    calls = find_calls(length, peers)
    unit = inputs[0].numel() * DTYPE.itemsize
    # Forward: read q, k, v, write out. Backward: read those four and the gradient of out, write three gradients.
    result: dict[str, Any] = {"keys_a_query": round(keys_a_query(length))}
    for kind, run, moved in (("forward", forward, 4), ("forward_backward", forward_backward, 12)):
        turns: dict[str, Callable[[], object]] = {name: partial(run, call, inputs) for name, call in calls.items()}
        if kind == "forward":
            turns |= record_graph(turns["ours"])
        seconds = alternate(turns, repetitions)
        floor = moved * unit / BYTES_A_SECOND
        result[kind] = {
            "seconds": seconds,
            "ratio": {name: value / seconds["ours"] for name, value in seconds.items()},
            "floor_seconds": floor,
            "share_of_floor": floor / seconds["ours"],
            "peak_bytes": {name: peak_bytes(partial(run, call, inputs)) for name, call in calls.items()},
        }
    result["parts"] = measure_parts(inputs, repetitions)
    print(length, json.dumps(result), flush=True)
    return result


def record_graph(call: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """Our launches recorded once and replayed: what the device needs when the host does not hold it up."""
    if DEVICE != "cuda":
        return {}
    try:
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except Exception as error:  # timing goes on without it
        print(f"left out: ours replayed as a graph: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return {}
    return {"ours_replayed": graph.replay}


def keys_a_query(length: int) -> float:
    return (1 - expected_sparsity(SPEC, length, False)) * length


def find_calls(length: int, peers: dict[str, Call]) -> dict[str, Call]:
    """Ours and the peers that run here; the others are named with their reason."""
    segments = make_segments(1, length, device=DEVICE)  # once a batch, as in a model

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bucket_attention(q, k, v, SPEC, segments=segments, backend="triton")

    calls: dict[str, Call] = {"ours": ours, **peers}
    probe = draw(length, heads=HEADS, width=WIDTH, dtype=DTYPE, device=DEVICE)
    for name, call in {**calls}.items():
        begun = time.perf_counter()
        try:
            forward_backward(call, probe)
        except Exception as error:
            if name == "ours":
                raise
            # a peer may fail in any way; the run goes on without it
            print(f"left out: {name} at {length}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            del calls[name]
        print(f"{name} at {length}: {time.perf_counter() - begun:.1f} s to compile and choose", flush=True)
    return calls


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if INTERPRET:
        return F.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def flex(length: int) -> Call:
    """A sliding window and one global token of as many keys a query as ours reads, compiled where there is a GPU."""
    half = int(keys_a_query(length) - 2) // 2
    made: list[Any] = []

    def seen(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((query - key).abs() <= half) | (key == 0)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        if not made:
            mask = create_block_mask(seen, None, None, length, length, device=DEVICE, _compile=not INTERPRET)
            made.extend([flex_attention if INTERPRET else torch.compile(flex_attention, dynamic=False), mask])
        out: Tensor = made[0](q, k, v, block_mask=made[1])
        return out

    return call


def forward(call: Call, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        call(*inputs)


def forward_backward(call: Call, inputs: list[Tensor]) -> None:
    for x in inputs:
        x.grad = None
    out = call(*inputs)
    out.backward(torch.ones_like(out))


def alternate(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of calls that take turns, after one turn to warm up."""
    runs: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repetitions + 1):
        for name, call in calls.items():
            seconds = time_once(call)
            if turn or INTERPRET:
                runs[name].append(seconds)
    return {name: statistics.median(times) for name, times in runs.items()}


def time_once(call: Callable[[], object]) -> float:
    """Seconds of a call; on a GPU the mean of three in a row, so that launches overlap with the device's work."""
    calls = 3 if DEVICE == "cuda" else 1
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize()
    return (time.perf_counter() - start) / calls


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Memory that a call needs on top of what was there before."""
    if DEVICE != "cuda":
        return None
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_parts(inputs: list[Tensor], repetitions: int) -> dict[str, float]:
    """Median seconds of the steps before attention; attention itself is the rest of the forward pass."""
    q, k, v = (x.detach() for x in inputs)
    S, H, n, K = q.shape
    (group,) = make_groups(make_segments(1, n, device=DEVICE), SPEC, causal=False, global_tokens=None)
    problem = make_problem((S, H, n, K), SPEC, dtype=q.dtype, device=q.device, group=group, causal=False)
    order = sort_keys(q, k, problem)
    tree = sum_tree(k, v, order, problem, needs_spreads=problem.adds_spread)
    return alternate(
        {
            "sort": partial(sort_keys, q, k, problem),
            "means": partial(sum_tree, k, v, order, problem, needs_spreads=problem.adds_spread),
            "descent": partial(descend, q, tree, problem),
        },
        repetitions,
    )


def print_table(lengths: dict[int, dict[str, Any]]) -> None:
    """Milliseconds, how many times slower each peer is, and the share of the memory floor that ours reaches."""
    for length, result in lengths.items():
        for kind in ("forward", "forward_backward"):
            found = result[kind]
            times = "  ".join(
                f"{name} {1000 * seconds:9.3f} ms ({found['ratio'][name]:.1f}x)"
                for name, seconds in found["seconds"].items()
            )
            floor = f"floor {1000 * found['floor_seconds']:.3f} ms, reached {100 * found['share_of_floor']:.1f} %"
            print(f"{length:>7} {kind:<17} {times}  {floor}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
