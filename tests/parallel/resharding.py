"""Runs that stop in one layout of processes and go on in another, beside a run that never stopped.

Started as `python -m tests.parallel.resharding FOLDER RANK SIZE PHASE`. In the phase "save" each layout of that many
processes trains and leaves a checkpoint; in the phase "resume" each goes on from the checkpoint of every layout.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from sortyard.errors import InputError
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.parallel.options import ParallelOptions
from sortyard.parallel.schedule import can_split_backward
from sortyard.parallel.watch import NoWatch
from sortyard.runs.folder import RunFolder
from sortyard.runs.progress import Progress
from sortyard.training.opening import open_session
from sortyard.training.options import LoopOptions, OptimizerOptions
from sortyard.training.session import Session
from tests.parallel.equality import ROOT, Case, make_model, micro_batch, run_reference

HALF, STEPS, ACCUMULATION = 2, 4, 2
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2": {"dp_shard": 2},
    "tp2": {"tp": 2},
    "pp2-v": {"pp": 2, "schedule": "zbv_zero_bubble" if can_split_backward() else "interleaved_1f1b"},
    "ep2": {"ep": 2},
    "dp3": {"dp_shard": 3},
    "hsdp-tp": {"dp_replicate": 2, "tp": 2, "sequence_parallel": True},
    "ep2-pp2": {"ep": 2, "pp": 2},
}
CASE = Case({}, "mixed", accumulation=ACCUMULATION, steps=STEPS)


def size_of(name: str) -> int:
    return prod(value for value in LAYOUTS[name].values() if type(value) is int)


@dataclass
class Leg:
    """What a part of a run in one layout came to; the whole model's are known to the first process only.

    Args:
        losses: of its steps.
        weights: how far the last weights are from those of a run that never stopped.
        differing: tensors of the whole model, as it was saved, that are not the same to the bit after loading.
    """

    losses: list[float]
    weights: float = 0.0
    differing: int = 0


def open_(name: str, run: RunFolder, case: Case = CASE) -> Session:
    loop = LoopOptions(steps=STEPS, micro_batch_size=8, accumulation_steps=ACCUMULATION, device="cpu")
    return open_session(
        make_model(case), objective=MaskedLMObjective(), loop=loop, optimizer=OptimizerOptions(lr=1e-3), run=run,
        display=Progress(), parallel=ParallelOptions(**LAYOUTS[name]), watch=NoWatch(),
    )  # fmt: skip


def whole(session: Session) -> dict[str, Tensor]:
    """The whole model as the first process has it, for a file."""
    session.gather_whole()
    return {name: tensor.clone() for name, tensor in session.model.state_dict().items()}


def go_on(name: str, folder: Path, *, start: str | None, until: int) -> Leg:
    """Train in a layout to a step, from nothing or from a checkpoint of another layout."""
    run = RunFolder(folder / (name if start is None else start))
    session, is_first = open_(name, run), not dist.is_initialized() or dist.get_rank() == 0
    assert session.restore(run) == (start is not None)
    leg, kept = Leg([]), run.path / "whole.safetensors"
    if start is not None:
        found = whole(session)
        if is_first:
            saved = load_file(kept)
            leg.differing = sum(not torch.equal(found[each], saved[each]) for each in found.keys() | saved.keys())
    objective, max_grad_norm = MaskedLMObjective(), LoopOptions(steps=1).max_grad_norm
    stepper = session.stepper(objective=objective, max_grad_norm=max_grad_norm, lr=lambda step: 1e-3, seed=3)
    while session.state.step < until:
        step = session.state.step
        result = stepper.take([micro_batch(step, m, share=session.share) for m in range(ACCUMULATION)], step=step)
        session.state.advance(result, seconds=0.0)
        leg.losses.append(result.task_loss)
    if start is None:
        session.save(run)
    values = whole(session)
    if start is None and is_first:
        save_file(values, kept)
    elif is_first:
        reference = load_file(folder / CASE.reference)
        for parameter, _ in session.model.named_parameters():
            if reference[f"first/{parameter}"].abs().max() > 1e-9:  # a key's bias gets rounding only
                apart = float((values[parameter] - reference[f"value/{parameter}"]).abs().max())
                leg.weights = max(leg.weights, apart)
    return leg


def refusal(name: str, folder: Path, *, start: str) -> str:
    """What is said of a checkpoint that is another model's."""
    run = RunFolder(folder / start)
    try:
        open_(name, run, replace(CASE, model="biased")).restore(run)
    except InputError as error:
        return str(error)
    return ""


def run_pairs(names: Sequence[str], folder: Path, *, timeout: float = 1200) -> dict[str, dict[str, float]]:
    """For every ordered pair "saved in > resumed in": how far losses and weights are from a run that never stopped.

    Beside it, how many tensors of the whole model are not what was saved, to the bit. A checkpoint of another model is
    refused in every layout, or this fails.
    """
    torch.set_num_threads(1)
    run_reference(CASE, folder)
    (folder / "names.json").write_text(json.dumps(list(names)))
    for name in names:
        (folder / name).mkdir()
    sizes = sorted({size_of(name) for name in names})
    for phase in ("save", "resume"):
        for size in sizes:
            _start(folder, size, phase, timeout=timeout)
    found: dict[str, dict[str, float]] = {}
    for size in sizes:
        found |= json.loads((folder / f"pairs-{size}.json").read_text())
    return found


def _start(folder: Path, size: int, phase: str, *, timeout: float) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    meeting = folder / f"meeting-{size}-{phase}"
    logs = [folder / f"log-{size}-{phase}-{rank}.txt" for rank in range(size)]
    processes = []
    deadline = time.monotonic() + timeout
    try:
        for rank, log in enumerate(logs):
            words = [sys.executable, "-m", "tests.parallel.resharding", str(folder), str(rank), str(size), phase]
            with log.open("w") as out:
                process = subprocess.Popen(
                    words, cwd=ROOT, env=environment | {"MEETING": str(meeting)}, stdout=out, stderr=out
                )
                processes.append(process)
        codes = [process.wait(timeout=max(1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)


def main(folder: Path, rank: int, size: int, phase: str) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{os.environ['MEETING']}", rank=rank, world_size=size)
    names = json.loads((folder / "names.json").read_text())
    mine = [name for name in names if size_of(name) == size]
    if phase == "save":
        for name in mine:
            go_on(name, folder, start=None, until=HALF)
        return
    truth = load_file(folder / CASE.reference)["losses"].tolist()
    pairs = {}
    for name in mine:
        for start in names:
            leg = go_on(name, folder, start=start, until=STEPS)
            loss = max(abs(a - b) for a, b in zip(leg.losses, truth[HALF:], strict=True))
            pairs[f"{start} > {name}"] = {"loss": loss, "weights": leg.weights, "differing": leg.differing}
        said = refusal(name, folder, start=names[0])
        assert "does not fit the model" in said, said
    if rank == 0:
        (folder / f"pairs-{size}.json").write_text(json.dumps(pairs))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
