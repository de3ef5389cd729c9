"""An ONNX file beside its model: how far apart they are, how often near ties fall elsewhere, and what a run costs.

A model of random weights reads random tokens, one sequence at a time, on one core. Discrete choices (halves of a
branch, open branches, experts) are made by rounding where they are near ties, so that sequences differ, if at all, by
rounding or by much: `apart` counts those with a difference of more than 1e-4. The library's own two backends are
compared in the same way, as a yardstick. Times are medians of processor seconds.

Run: python benchmarks/onnx_export.py     (about 10 minutes; needs the extra onnx)
Writes benchmarks/results/onnx_export.json.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from runs import write_result
from sortyard import SortyardConfig, SortyardForMaskedLM
from sortyard.interop import export_onnx
from sortyard.runs.environment import describe_environment

SEED = 0
LENGTHS = {64: 20, 256: 20, 512: 20, 1024: 20, 2048: 20, 4096: 5}  # sequences
APART = 1e-4
SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "max_position_embeddings": 4096,
}
Run = Callable[[Tensor], Tensor]


def main() -> None:
    model = random_model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path)
        size, session = path.stat().st_size, open_file(path)
        runs: dict[str, Run] = {
            "onnx": lambda ids: run_file(session, ids),
            "compiled": lambda ids: run_model(model, ids, backend="compiled"),
            "cpu": lambda ids: run_model(model, ids, backend="cpu"),
        }
        lengths = {str(length): measure(runs, length=length, times=times) for length, times in LENGTHS.items()}
    environment = describe_environment(seed=SEED, device="cpu", data_fingerprint="random", command=["onnx_export.py"])
    environment.pop("command")
    environment["versions"]["onnxruntime"] = onnxruntime.__version__
    result = {
        "what": "an ONNX file beside its model, random weights and tokens, one sequence at a time, one core",
        "script": "benchmarks/onnx_export.py",
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment,
        "config": SIZES,
        "file_bytes": size,
        "weights_bytes": sum(4 * parameter.numel() for parameter in model.parameters()),
        "lengths": lengths,
    }
    write_result("onnx_export", result)


def random_model() -> SortyardForMaskedLM:
    """Weights as large as trained ones: those of a fresh model hardly move a state."""
    model = SortyardForMaskedLM(SortyardConfig(**SIZES)).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return model


def open_file(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def run_file(session: onnxruntime.InferenceSession, ids: Tensor) -> Tensor:
    inputs = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    return torch.from_numpy(session.run(["logits"], inputs)[0])


@torch.no_grad()
def run_model(model: SortyardForMaskedLM, ids: Tensor, *, backend: str) -> Tensor:
    os.environ["SORTYARD_BACKEND"] = backend
    logits: Tensor = model(ids).logits
    return logits


def measure(runs: dict[str, Run], *, length: int, times: int) -> dict[str, Any]:
    """Differences of pairs, by sequence, and processor seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    worst: dict[str, list[float]] = {"onnx-compiled": [], "cpu-compiled": []}
    generator = torch.Generator().manual_seed(SEED + length)
    for _ in range(times):
        ids = torch.randint(0, SIZES["vocab_size"], (1, length), generator=generator)
        found = {}
        for name, run in runs.items():
            started = time.process_time()
            found[name] = run(ids)
            seconds[name].append(time.process_time() - started)
        for pair, values in worst.items():
            one, other = pair.split("-")
            values.append((found[one] - found[other]).abs().max().item())
    print(length, worst, flush=True)
    return {
        "sequences": times,
        "apart": {pair: sum(value > APART for value in values) for pair, values in worst.items()},
        "largest_of_the_others": {
            pair: max((value for value in values if value <= APART), default=None) for pair, values in worst.items()
        },
        "largest": {pair: max(values) for pair, values in worst.items()},
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }


if __name__ == "__main__":
    main()
