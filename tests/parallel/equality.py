"""A small model trained by several processes in many layouts, beside the same run in one process.

Started as `python -m tests.parallel.equality FOLDER SIZE` by `run_world`, with the cases in FOLDER/cases.json and the
runs of one process in FOLDER/reference-*.safetensors. It forks into SIZE processes, which saves importing torch in each
of them; each leaves FOLDER/report-RANK.json: how far off every case is.
"""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from sortyard import SortyardConfig
from sortyard.model.factory import HEADS
from sortyard.objectives.causal_lm import CausalLMObjective
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.parallel.activation_checkpointing import checkpoint_activations
from sortyard.parallel.apply import SplitModel, local, parallelize
from sortyard.parallel.compiling import compile_layers
from sortyard.parallel.mesh import Layout
from sortyard.parallel.options import ParallelOptions
from sortyard.training.optimizer import build_optimizer
from sortyard.training.options import OptimizerOptions
from sortyard.training.precision import Precision
from sortyard.training.split_step import SplitStepper
from sortyard.training.step import Stepper, StepResult

ROOT = Path(__file__).resolve().parents[2]
ROWS, LENGTH, VOCABULARY = 8, 48, 96
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 8,
    "intermediate_size": 48, "moe_intermediate_size": 24, "num_experts": 8, "num_expert_groups": 2,
    "max_position_embeddings": LENGTH, "dense_up_to": 16, "bucket_size": 4, "near_buckets": 2, "beam": 2,
    "query_chunk": 8, "local_window": 2, "initializer_range": 0.2, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "bias_update_rate": 1e-3, "balance_coef": 0.05,
}  # fmt: skip
NUMBERS = ("losses", "balances", "norms", "skipped")  # of every step
MODELS: dict[str, dict[str, Any]] = {
    "tree": {},
    "mixed": {  # dense and sliding layers, a shared expert, biases, post-norm, learned positions, narrow embeddings
        "attention_layers": ["dense", "bucket", "sliding", "bucket"], "sliding_window": 4,
        "expert_layers": [False, True, True, False], "shared_expert": True, "use_bias": True, "gated_ffn": False,
        "norm_position": "post", "position_embedding_type": "learned", "embedding_size": 16, "vocab_size": 93,
    },
    "deep": {"num_hidden_layers": 8, "expert_layers": [False, True] * 4},
    "deeper": {"num_hidden_layers": 16, "expert_layers": [False, True] * 8},
    "causal": {"causal": True, "context": "running_mean", "selection": "rounds"},
    "biased": {"use_bias": True},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One layout of one model."""

    layout: dict[str, Any]
    model: str = "tree"
    accumulation: int = 8
    steps: int = 20
    checkpointing: str = "none"
    dtype: str = "float64"
    precision: str = "fp32"
    break_it: str = ""  # the name of a silent bug to put back
    compiled: bool = False
    device: str = "cpu"  # "cuda": all processes on one GPU
    spoilt: str = ""  # what of one micro-batch, of one share of its rows, is no number: "loss" or "gradients"

    @property
    def name(self) -> str:
        layout = "-".join(f"{name}{value}" for name, value in self.layout.items())
        return "-".join(
            [layout, self.model, f"x{self.accumulation}"]
            + [self.checkpointing] * (self.checkpointing != "none") + [self.break_it] * bool(self.break_it)
            + [self.spoilt] * bool(self.spoilt) + ["compiled"] * self.compiled + [self.device] * (self.device != "cpu")
        )  # fmt: skip

    @property
    def reference(self) -> str:
        words = ["reference", self.model, f"x{self.accumulation}", str(self.steps), self.dtype, self.precision]
        words += [self.device] * (self.device != "cpu") + [self.spoilt] * bool(self.spoilt)
        return "-".join(words) + ".safetensors"


@dataclass
class Course:
    """What a run did: losses and norms by step, gradients at the first and last update."""

    losses: list[float] = field(default_factory=list)
    balances: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: list[float] = field(default_factory=list)
    loads: list[Tensor] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        assert result.outcome in ("updated", "overflow", "bad"), result
        self.skipped.append({"updated": 0.0, "overflow": 1.0, "bad": 3.0 + result.bad_micro_batch}[result.outcome])
        self.losses.append(result.task_loss)
        self.balances.append(result.balance_loss)
        self.norms.append(result.grad_norm)
        self.measured = {f"{kind}_bytes": float(count) for kind, count in (result.traffic or {}).items()}
        self.measured["bubble_share"] = -1.0 if result.bubble_share is None else result.bubble_share
        if result.expert_loads is not None:
            self.loads.append(result.expert_loads.double())

    def tensors(self) -> dict[str, Tensor]:
        found = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in NUMBERS}
        return found | {"loads": torch.stack(self.loads)}


def make_model(case: Case) -> Any:
    fields = SMALL | MODELS[case.model]
    torch.manual_seed(7)
    kind = "causal_lm" if fields.get("causal") else "masked_lm"
    return HEADS[kind](SortyardConfig(**fields)).to(getattr(torch, case.dtype)).train()


def make_precision(case: Case) -> Precision:
    """With a loss scale from which float16 gradients overflow in the first steps."""
    made = Precision(case.precision, device=torch.device(case.device))  # type: ignore[arg-type]
    if case.precision == "fp16":
        made.scaler = torch.amp.GradScaler(case.device, init_scale=2.0**24)
    return made


def objective(case: Case) -> Any:
    return CausalLMObjective() if MODELS[case.model].get("causal") else MaskedLMObjective()


def micro_batch(step: int, micro: int, *, share: tuple[int, int] = (0, 1), causal: bool = False) -> dict[str, Tensor]:
    """Rows of two packed texts and some padding; targets are few in some rows and many in others."""
    generator = torch.Generator().manual_seed(1000 * step + micro)
    ids = torch.randint(4, 90, (ROWS, LENGTH), generator=generator)
    rates = torch.rand(ROWS, 1, generator=generator) * 0.5
    is_target = torch.rand(ROWS, LENGTH, generator=generator) < rates
    borders = torch.randint(10, 25, (ROWS,), generator=generator).tolist()
    used = torch.randint(30, LENGTH + 1, (ROWS,), generator=generator).tolist()
    real = torch.arange(LENGTH)[None] < torch.tensor(used)[:, None]
    is_target |= torch.arange(LENGTH)[None] == 3
    labels = ids.masked_fill(~real if causal else ~(is_target & real), -100)
    rows = torch.arange(ROWS).tensor_split(share[1])[share[0]].tolist()
    bounds = [0]
    for at, row in enumerate(rows):
        inner = [borders[row], used[row]] + [LENGTH] * (used[row] < LENGTH)
        bounds += [at * LENGTH + end for end in inner]
    ids = torch.where(real, ids, 0)
    return {
        "input_ids": ids[rows], "attention_mask": real[rows].long(), "labels": labels[rows],
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32),
    }  # fmt: skip


def spoil(model: Any, case: Case) -> None:
    """Let the last micro-batch of the second step have a loss, or gradients, that is no number."""
    calls = itertools.count()

    def hook(_module: Any, _args: Any, outputs: Any) -> None:
        if next(calls) == 2 * case.accumulation - 1:
            if case.spoilt == "loss":
                outputs.task_loss = outputs.task_loss * float("nan")
                outputs.loss = outputs.loss * float("nan")
            else:
                outputs.task_loss.register_hook(lambda gradient: gradient * float("nan"))

    model.register_forward_hook(hook)


def run_reference(case: Case, folder: Path) -> None:
    """The same run in one process; nothing is done where it is there."""
    path = folder / case.reference
    if path.exists():
        return
    model, aim = make_model(case).to(case.device), objective(case)
    if case.spoilt:
        spoil(model, case)
    optimizer = build_optimizer(model, OptimizerOptions(lr=1e-3))
    course, gradients = Course(), {}

    def note(*_: Any) -> None:
        prefix = "first" if not course.losses else "last"
        gradients.update({f"{prefix}/{name}": p.grad.cpu().clone() for name, p in model.named_parameters()})

    optimizer.register_step_pre_hook(note)
    stepper = Stepper(
        model, objective=aim, optimizer=optimizer, precision=make_precision(case),
        max_grad_norm=1.0, lr=lambda step: 1e-3, seed=3,
    )  # fmt: skip
    for step in range(case.steps):
        course.add(
            stepper.take([micro_batch(step, m, causal=_causal(case)) for m in range(case.accumulation)], step=step)
        )
    values = {f"value/{name}": p.detach().cpu() for name, p in model.named_parameters()}
    save_file(course.tensors() | gradients | values, path)


def set_layers(part: Any, *, case: Case) -> None:
    checkpoint_activations(part, case.checkpointing)  # type: ignore[arg-type]
    if case.compiled:
        torch._dynamo.utils.counters.clear()
        compile_layers(part)


def _causal(case: Case) -> bool:
    return bool(MODELS[case.model].get("causal"))


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """Train in a layout, and say how far it is from one process."""
    from tests.parallel.silent_bugs import put_back

    device = torch.device(case.device)
    started = time.perf_counter()
    reference = load_file(folder / case.reference)
    with put_back(case.break_it):
        layout = Layout.make(ParallelOptions(**case.layout), device=device)
        aim, precision = objective(case), make_precision(case)
        split = parallelize(
            make_model(case), layout=layout, count_targets=aim.count_targets, autocast=precision.autocast,
            set_layers=partial(set_layers, case=case), counts_traffic=not case.compiled,
        )  # fmt: skip
        if case.spoilt and layout.data.rank() == layout.data.size() - 1 and split.stages[-1].is_last:
            spoil(split.stages[-1].model, case)
        optimizer = build_optimizer(split.stages, OptimizerOptions(lr=1e-3))
        course = Course()
        worst = {"first": 0.0, "last": 0.0}

        def note(*_: Any) -> None:
            when = "first" if not course.losses else "last"
            if case.dtype == "float64" and (when == "first" or len(course.losses) == case.steps - 1):
                worst[when] = _furthest(split, reference, when)

        optimizer.register_step_pre_hook(note)
        stepper = SplitStepper(
            split, objective=aim, optimizer=optimizer, precision=precision, max_grad_norm=1.0,
            lr=lambda step: 1e-3, seed=3,
        )  # fmt: skip
        share = (layout.data.rank(), layout.data.size())
        for step in range(case.steps):
            batches = [micro_batch(step, m, share=share, causal=_causal(case)) for m in range(case.accumulation)]
            course.add(stepper.take(batches, step=step))
    own = course.tensors()
    found = {name: _apart(own[name], reference[name]) for name in (*NUMBERS, "loads")}
    found |= worst | {"values": _furthest(split, reference, "value") if case.dtype == "float64" else 0.0}
    found["graphs"] = float(torch._dynamo.utils.counters["stats"]["unique_graphs"]) if case.compiled else 0.0
    found["num_skipped"] = float(own["skipped"].sum())
    found |= course.measured | {"copies": float(own["loads"][0].sum())}
    return found | {"seconds": time.perf_counter() - started, "covered": _covered(split)}


def _apart(own: Tensor, reference: Tensor) -> float:
    """Largest difference; infinite where only one of them is a number."""
    if not torch.equal(own.isnan(), reference.isnan()):
        return float("inf")
    return float((own - reference).nan_to_num().abs().max())


def _furthest(split: SplitModel, reference: dict[str, Tensor], kind: str) -> float:
    """Largest difference of a gradient or value from one process's, relative to the largest of its tensor.

    Softmax does not see a bias of the keys: its gradient is rounding, and what AdamW makes of it is noise. So gradients
    count from a millionth of the largest of all on, and values of tensors with smaller ones are left out.
    """
    furthest = 0.0
    least = 1e-6 * max(float(value.abs().max()) for name, value in reference.items() if name.startswith("first/"))
    for held in split.held(buffers=False):
        value = held.tensor.detach() if kind == "value" else held.tensor.grad
        whole = reference[f"{kind}/{held.name}"]
        if kind == "value" and float(reference[f"first/{held.name}"].abs().max()) < least:
            continue
        part = local(value).cpu()
        for box in held.placement.boxes(part, first_row=held.first_row):
            own = part[box.inside]
            there = tuple(slice(o, o + n) for o, n in zip(box.offset, own.shape, strict=True))
            scale = max(float(whole.abs().max()), least)
            furthest = max(furthest, float((own - whole[there]).abs().max()) / scale)
    return furthest


def _covered(split: SplitModel) -> dict[str, int]:
    """How many elements of each parameter this process answers for."""
    counts: dict[str, int] = {}
    for held in split.held(buffers=False):
        if held.is_owned:
            part = local(held.tensor)
            boxes = held.placement.boxes(part, first_row=held.first_row)
            counts[held.name] = counts.get(held.name, 0) + sum(part[box.inside].numel() for box in boxes)
    return counts


def run_world(cases: Sequence[Case], *, size: int, folder: Path, timeout: float = 1200) -> list[dict[str, Any]]:
    """Run cases one after another in a world of processes; the report of each case is the worst of all of them."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        run_reference(case, folder)
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.parallel.equality", str(folder), str(size)]
    logs = [folder / f"log-{rank}.txt" for rank in range(size)]
    for leftover in (folder / "meeting", *logs):
        leftover.unlink(missing_ok=True)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(timeout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, "\n".join(log.read_text()[-3000:] for log in logs if log.exists())
    reports = [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(size)]
    return [_together([report[number] for report in reports]) for number in range(len(cases))]


def _together(reports: list[dict[str, Any]]) -> dict[str, Any]:
    worst = {name: max(report[name] for report in reports) for name in reports[0] if name != "covered"}
    covered: dict[str, int] = {}
    for report in reports:
        for name, count in report["covered"].items():
            covered[name] = covered.get(name, 0) + count
    return worst | {"covered": covered}


def main(folder: Path, size: int) -> None:
    """Become all processes of a world; ends with status 1 where one of them fails."""
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run_rank, args=(folder, rank, size)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


def run_rank(folder: Path, rank: int, size: int) -> None:
    """Be one process of the world."""
    with (folder / f"log-{rank}.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    cases = [Case(**fields) for fields in json.loads((folder / "cases.json").read_text())]
    on_gpu = any(case.device == "cuda" for case in cases)
    if on_gpu and size > 1:
        from tests.parallel.one_gpu import share_gpu

        share_gpu()
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    reports = [run_case(case, folder) for case in cases]
    (folder / f"report-{rank}.json").write_text(json.dumps(reports))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
