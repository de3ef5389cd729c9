"""Processes that killing.py kills: each owns pieces of a small model, and they save it together.

The arithmetic is exact in float32, so that the result is the same for every number of processes.
"""

from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from sortyard.parallel.peers import Group
from sortyard.runs.folder import RunFolder
from sortyard.runs.lock import run_lock
from sortyard.training.checkpoint import Checkpoint, CheckpointStore, Snapshot
from sortyard.training.pieces import Piece

STEPS = 30
SHAPES = {"embeddings.weight": (301, 64), "experts": (8, 40, 30), "norm.bias": (7,)}
SAMPLES_PER_STEP = 16


class Shards:
    """A process's part of the model and of its moments: rows where there are enough, for one tensor columns."""

    def __init__(self, *, rank: int, size: int):
        self.rank = rank
        self.boxes = {}
        for name, shape in SHAPES.items():
            dim = 2 if name == "experts" else 0
            bounds = [shape[dim] * place // size for place in (rank, rank + 1)]
            offset, own = [0] * len(shape), list(shape)
            offset[dim], own[dim] = bounds[0], bounds[1] - bounds[0]
            self.boxes[name] = tuple(offset), tuple(own)
        self.weights = {name: torch.zeros(shape) for name, (_, shape) in self.boxes.items()}
        self.moments = {name: torch.zeros(shape) for name, (_, shape) in self.boxes.items()}

    def update(self, total: torch.Tensor) -> None:
        for name, (offset, shape) in self.boxes.items():
            rows = torch.arange(offset[0], offset[0] + shape[0], dtype=torch.float32)
            gradient = (rows.reshape(-1, *[1] * (len(shape) - 1)) * 3 + total) % 17
            self.moments[name].mul_(0.5).add_(gradient.expand(shape) * 0.5).round_()
            self.weights[name].add_(self.moments[name]).remainder_(4093)

    def snapshot(self, step: int) -> Snapshot:
        weights = [self._piece(name, name, self.weights[name]) for name in self.boxes]
        moments = [self._piece(f"exp_avg/{name}", name, self.moments[name]) for name in self.boxes]
        moments.append(Piece.all_of("step", torch.tensor(float(step))))  # which every process holds
        return Snapshot(weights, moments, {"step": step, "best_step": 0})

    def load(self, checkpoint: Checkpoint) -> None:
        for name, box in self.boxes.items():
            self.weights[name] = checkpoint.read("model", name, box)
            self.moments[name] = checkpoint.read("optimizer", f"exp_avg/{name}", box)

    def _piece(self, key: str, name: str, tensor: torch.Tensor) -> Piece:
        return Piece(key, SHAPES[name], self.boxes[name][0], tensor)


def run_process(path: str, rank: int, size: int, rendezvous: str, asynchronous: bool) -> None:
    """One process of the run at a path, which is there already; starts it or goes on with it."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    run = RunFolder.open(path)
    with run_lock(run.path) if rank == 0 else nullcontext():
        _train(run, rank=rank, size=size, asynchronous=asynchronous)
    dist.destroy_process_group()


def _train(run: RunFolder, *, rank: int, size: int, asynchronous: bool) -> None:
    def warn(message: str) -> None:
        run.append_event("warning", message=message)

    peers = Group.of_all()
    shards = Shards(rank=rank, size=size)
    store = CheckpointStore(run.checkpoints, keep=2, warn=warn, peers=peers, in_background=asynchronous)
    store.prepare()
    newest = store.load_newest()
    step = 0
    if newest is not None:
        shards.load(newest)
        step = int(newest.state["step"])
    if rank == 0:
        run.cut_after(step)
        run.append_event("resume" if step else "start", step=step)
    with store:
        while step < STEPS:
            samples = torch.arange(step * SAMPLES_PER_STEP + rank, (step + 1) * SAMPLES_PER_STEP, size)
            total = (samples * samples % 11).sum().float()
            dist.all_reduce(total)
            shards.update(total)
            step += 1
            if rank == 0:
                run.append_metric("train", step, {"loss": float(total)})
            if step % 2 == 0:
                if rank == 0:
                    run.sync()
                store.save(shards.snapshot(step))
    last = store.load(STEPS)
    assert last is not None
    if rank == 0:
        run.model.mkdir(exist_ok=True)
        save_file(last.tensors("model"), run.model / "model.safetensors")
