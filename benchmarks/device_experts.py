"""Expert backends on a GPU: errors there, then time against the dense layer and transformers' grouped experts.

Run on a machine with a GPU: python benchmarks/device_experts.py [--out FILE] [--parts parity timing compiled]
[--minutes 9]   (no network; what the file says of other parts stays if it is of this machine and code)
Run anywhere, small and slow: python benchmarks/device_experts.py --interpret --out FILE
Writes benchmarks/results/device_experts.json unless told otherwise; exit status 1 where an error is off.
"""

# ruff: noqa: E402
# Triton decides at import whether its functions are interpreted, so the variable comes before the imports.

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

INTERPRET = "--interpret" in sys.argv
if INTERPRET:
    os.environ["TRITON_INTERPRET"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import torch
from device_runs import begin_result, has_time, kept_parts, read_arguments, save
from torch import Tensor

from sortyard.ops import Routing, grouped_mlp, route
from sortyard.ops.grouped_mlp import BACKENDS
from sortyard.studies.bench.cases import make_call
from sortyard.studies.bench.experts_cases import ExpertCase, ExpertInputs, make_inputs
from sortyard.studies.bench.experts_sides import DENSE, OURS, PEERS, ExpertSide, find_sides
from sortyard.studies.bench.results import version_of
from sortyard.studies.bench.runner import alternate, ratio_of

DEVICE = "cpu" if INTERPRET else "cuda"
SEED = 0
WIDTH, INNER = (32, 64) if INTERPRET else (768, 3072)
EXPERTS = ((4, 2),) if INTERPRET else ((8, 2), (64, 8))
TOKENS = {48: 1} if INTERPRET else {16_384: 9, 65_536: 5, 4096: 9, 512: 9, 2048: 9}  # repetitions
DIRECTIONS = ("forward+backward", "forward")
PARTS = ("parity", "timing", "compiled")
PARITY_TOKENS = (1, 37) if INTERPRET else (1, 63, 1000, 5003)
PARITY_DTYPES = (torch.bfloat16, torch.float32) if INTERPRET else (torch.bfloat16, torch.float16, torch.float32)
PARITY_LOADS = ("even", "one_expert", "empty_experts")
WANTED = [name for name in ("grouped", "triton") if name in BACKENDS]
CALLS_IN_A_ROW = 1 if INTERPRET else 3  # on a GPU, so that launches overlap with the device's work


def main() -> int:
    args = read_arguments(__doc__, name="device_experts", parts=PARTS)
    path: Path = args.out
    may_begin = partial(has_time, minutes=args.minutes, interpreted=INTERPRET)
    found = describe()
    found |= kept_parts(path, found, parts=PARTS, asked=args.parts)
    if DEVICE == "cuda":
        # The truth is float32 without the tensor cores' shortened products.
        torch.backends.cuda.matmul.allow_tf32 = False
    if "parity" in args.parts:
        found["parity"] = [
            check_parity(backend, tokens, dtype, load=load, gated=gated, bias=bias)
            for dtype, (gated, bias), backend, tokens, load in product(
                PARITY_DTYPES, ((True, True), (False, False)), WANTED, PARITY_TOKENS, PARITY_LOADS
            )
            if may_begin(f"parity {backend} {tokens} {dtype} {load}", 5)
        ]
        save(path, found)
    times = [part for part in PARTS[1:] if part in args.parts]
    found |= {part: {} for part in times}
    for part, tokens, direction, (num_experts, per_tok) in product(times, TOKENS, DIRECTIONS, EXPERTS):
        case = ExpertCase(
            length=tokens, dtype="bf16", direction=direction, num_experts=num_experts, num_experts_per_tok=per_tok,
            hidden_size=WIDTH, intermediate_size=INNER, seed=SEED, device=DEVICE,
        )  # fmt: skip
        if may_begin(f"{part} {case.key}", 10):
            found[part][case.key] = measure(case, TOKENS[tokens], compiled=part == "compiled")
            save(path, found)
    for part in PARTS[1:]:
        print_table(found.get(part, {}))
    return 0 if all(case["passes"] for case in found.get("parity", [])) else 1


def describe() -> dict[str, Any]:
    return begin_result(
        "device_experts", device="cpu" if INTERPRET else f"cuda: {torch.cuda.get_device_name()}", seed=SEED,
        what="expert backends: errors on the device, then seconds beside a dense layer of equal active work and "
        "transformers' grouped experts; ours with its router, transformers' with a plain one on the same gate",
        facts={
            "interpreted": INTERPRET,
            "shape": {"hidden_size": WIDTH, "intermediate_size": INNER, "dtype": "bf16"},
            "triton": version_of("triton"),
            "backends": list(BACKENDS),
        },
    )  # fmt: skip


def check_parity(
    backend: str, tokens: int, dtype: torch.dtype, *, load: str, gated: bool, bias: bool
) -> dict[str, Any]:
    """Largest errors against float64 of a backend and of the reference in the same dtype, from one routing."""
    num_experts, per_tok = (4, 2) if INTERPRET else (16, 4)
    weights = draw_weights(num_experts, dtype, gated=gated, bias=bias)
    x, scores, gradient = draw_tokens(tokens, num_experts, dtype, load=load)
    options = {"num_groups": 1, "num_groups_per_tok": 1, "num_experts_per_tok": 1 if load == "one_expert" else per_tok}
    settings = {"activation": "gelu", "gated": gated}

    def run(name: str, type_: torch.dtype) -> list[Tensor]:
        leaves = {key: value.detach().to(type_).requires_grad_() for key, value in weights.items()}
        own, gate = x.detach().to(type_).requires_grad_(), scores.detach().clone().requires_grad_()
        routing: Routing = route(gate, **options)
        out = grouped_mlp(own, routing, **leaves, **settings, backend=name)
        grads = torch.autograd.grad(out, [own, gate, *leaves.values()], gradient.to(type_))
        return [out.detach(), *grads]

    found: dict[str, Any] = {
        "backend": backend, "tokens": tokens, "dtype": str(dtype), "load": load, "gated": gated, "bias": bias,
    }  # fmt: skip
    try:
        ours = run(backend, dtype)
    except Exception as error:  # a kernel may fail in any way; the run goes on and says so
        found |= {"passes": False, "error": f"{type(error).__name__}: {str(error)[:300]}"}
        print("parity", json.dumps(found), flush=True)
        return found
    truth, twin = run("reference", torch.float64), run("reference", dtype)
    names = ("out", "dx", "dscores", *(f"d{key}" for key in weights))
    errors = {
        name: [float((result.double() - true).abs().max()) for result in (mine, theirs)]
        for name, mine, theirs, true in zip(names, ours, twin, truth, strict=True)
    }
    # Few roundings of few numbers make a chancy ratio: errors of some units in the last place are let pass.
    floors = [8 * torch.finfo(dtype).eps * float(true.abs().max()) for true in truth]
    passes = all(errors[name][0] <= max(2 * errors[name][1], floor) for name, floor in zip(names, floors, strict=True))
    found |= {"errors": errors, "passes": passes}
    print("parity", json.dumps(found), flush=True)
    return found


def draw_weights(num_experts: int, dtype: torch.dtype, *, gated: bool, bias: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    inner = INNER // 4
    up = 2 * inner if gated else inner
    shapes = {"up": (num_experts, up, WIDTH), "down": (num_experts, WIDTH, inner)}
    if bias:
        shapes |= {"up_bias": (num_experts, up), "down_bias": (num_experts, WIDTH)}
    scale = {key: 1.0 if key.endswith("bias") else shape[-1] ** -0.5 for key, shape in shapes.items()}
    drawn = {key: scale[key] * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return {key: value.to(DEVICE, dtype) for key, value in drawn.items()}


def draw_tokens(tokens: int, num_experts: int, dtype: torch.dtype, *, load: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, gate scores that send them evenly, to one expert, or past the upper half, and the output's gradient."""
    generator = torch.Generator().manual_seed(SEED + 1)
    x, gradient = torch.randn(2, tokens, WIDTH, generator=generator).to(DEVICE, dtype)
    logits = torch.randn(tokens, num_experts, generator=generator)
    if load == "one_expert":
        logits[:, 1] += 100.0
    elif load == "empty_experts":
        logits[:, num_experts // 2 :] -= 100.0
    return x, logits.sigmoid().clamp_min(1e-6).to(DEVICE), gradient


def measure(case: ExpertCase, repetitions: int, *, compiled: bool) -> dict[str, Any]:
    """Median seconds of every side, alternated, how many times dense's they are, and the memory each needs."""
    inputs = make_inputs(case)
    calls = {
        name: make_call(side.work(inputs, case), direction=case.direction)
        for name, side in sides(case, compiled=compiled).items()
    }
    for name in list(calls):
        try:
            calls[name]()
        except Exception as error:  # a side may fail in any way; the run goes on without it
            print(f"left out: {name} at {case.key}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            del calls[name]
    if case.direction == "forward" and not compiled:
        calls |= {f"{name}-replayed": graph for name in list(calls) if (graph := record_graph(name, calls[name]))}
    runs = alternate(
        {name: partial(in_a_row, call) for name, call in calls.items()},
        repetitions=repetitions,
        synchronise=synchronize,
    )
    result = {
        "max_over_fair_load": load_of(inputs),
        "seconds": {name: sorted(seconds)[len(seconds) // 2] / CALLS_IN_A_ROW for name, seconds in runs.items()},
        "times_dense": {name: ratio_of(seconds, runs[DENSE]).record() for name, seconds in runs.items()},
        "peak_bytes": {name: peak_bytes(call) for name, call in calls.items() if not name.endswith("-replayed")},
    }
    print(case.key, json.dumps(result), flush=True)
    return result


def sides(case: ExpertCase, *, compiled: bool) -> dict[str, ExpertSide]:
    """Dense, ours as it chooses and by backend, and transformers' grouped experts; or dense and what is compiled."""
    found = find_sides(case.device)
    names = [DENSE, OURS, *(f"{OURS}-{name}" for name in WANTED), f"{PEERS}grouped"]
    if compiled:
        names = [DENSE, f"{DENSE}-compiled", f"{OURS}-compiled"]
    return {name: found[name] for name in names if name in found}


def in_a_row(call: Callable[[], object]) -> None:
    for _ in range(CALLS_IN_A_ROW):
        call()


def record_graph(name: str, call: Callable[[], object]) -> Callable[[], object] | None:
    """Launches recorded once and replayed: what the device needs when the host does not hold it up."""
    if DEVICE != "cuda" or name.endswith("-compiled"):
        return None
    try:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except Exception as error:  # timing goes on without it
        print(f"left out: {name} replayed as a graph: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return None
    return graph.replay


def load_of(inputs: ExpertInputs) -> float:
    with torch.no_grad():
        loads = inputs.layer.router(inputs.hidden, None, None, inputs.segments).loads
    return float(loads.max() / loads.mean())


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


def print_table(timing: dict[str, dict[str, Any]]) -> None:
    """Milliseconds, and how many times dense's they are."""
    for key, result in timing.items():
        times = "  ".join(
            f"{name} {1000 * seconds:.3f} ms ({result['times_dense'][name]['median']:.2f})"
            for name, seconds in result["seconds"].items()
        )
        print(f"{key:<32} {times}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
