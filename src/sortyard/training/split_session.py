"""The session of a run that several processes share: each saves and loads its part of every tensor."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sortyard.parallel.apply import Held, SplitModel, local
from sortyard.parallel.peers import Group, told_of_losses
from sortyard.training.checkpoint import Checkpoint, Kind
from sortyard.training.pieces import Piece
from sortyard.training.session import Session
from sortyard.training.split_step import SplitStepper
from sortyard.training.step import Stepper
from sortyard.training.weights import check_fits


@dataclass(kw_only=True)
class SplitSession(Session):
    """A run in the memory of several processes; each makes every call.

    Args:
        split: this process's part of the model. `model` is the whole one, which the first process keeps on the CPU for
            what needs all of it; elsewhere it is not read.
        talk: what the processes agree by; the checkpoints have a group of their own.
    """

    split: SplitModel
    talk: Group

    @property
    def share(self) -> tuple[int, int]:
        """Which share of every micro-batch's rows is this process's, and of how many."""
        return self.split.layout.data.rank(), self.split.layout.data.size()

    def _in_training(self) -> tuple[type[Stepper], Any]:
        return SplitStepper, self.split

    def agree(self, *, seconds: float, signal: int) -> tuple[float, int, int]:
        """The longest time, the highest signal and the largest memory of all processes."""
        values = torch.tensor(super().agree(seconds=seconds, signal=signal), dtype=torch.float64)
        with told_of_losses():
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.talk.group)
        return float(values[0]), int(values[1]), int(values[2])

    def measure(self, evaluate: Callable[[Any], dict[str, float]]) -> dict[str, float]:
        """Evaluate the whole model on the first process, while the others wait; each batch of it has the time-out."""
        self.gather_whole()
        metrics = None
        if self.talk.rank == 0:
            self.model.to(self.precision.device)
            what = f"evaluating after step {self.state.step}"
            batches = self.model.register_forward_pre_hook(lambda *_: self.watch.beat(what, alone=True))
            metrics = super().measure(evaluate)
            batches.remove()
            self.watch.beat(f"recording or saving after step {self.state.step}", limited=False)
            self.model.to("cpu")
        shared: dict[str, float] = self.talk.share(metrics)
        return shared

    @told_of_losses()
    def gather_whole(self) -> None:
        """Bring the weights as they are into the first process's whole model."""
        pieces = list(self._weights())
        labels = [[p.name, list(p.offset), list(p.tensor.shape), str(p.tensor.dtype)] for p in pieces]
        everyones = self.talk.gather(labels)
        if everyones is None:
            for piece in pieces:
                dist.send(piece.tensor.cpu().contiguous(), dst=self.talk.first, group=self.talk.group)
            return
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        with torch.no_grad():
            for rank, theirs in enumerate(everyones):
                for number, (name, offset, shape, dtype) in enumerate(theirs):
                    if rank == 0:
                        part = pieces[number].tensor
                    else:
                        part = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
                        dist.recv(part, src=dist.get_global_rank(self.talk.group, rank), group=self.talk.group)
                    box = tuple(slice(begin, begin + size) for begin, size in zip(offset, shape, strict=True))
                    tensors[name][box].copy_(part)

    def _pieces(self) -> tuple[list[Piece], list[Piece]]:
        optimizer = [
            piece
            for held in self.split.held(buffers=False)
            for quantity, value in self.optimizer.state.get(held.tensor, {}).items()
            for piece in _pieces_of(held, f"{quantity}/{held.name}", value)
        ]
        return list(self._weights()), optimizer

    def _weights(self) -> Iterator[Piece]:
        for held in self.split.held():
            yield from _pieces_of(held, held.name, held.tensor)

    def _load(self, checkpoint: Checkpoint) -> None:
        held = list(self.split.held())
        self._check_names(checkpoint, held)
        updated = set(checkpoint.names("optimizer"))
        for each in held:
            _fill(each, checkpoint, "model", each.name, each.tensor)
            if f"step/{each.name}" in updated:
                step = checkpoint.read("optimizer", f"step/{each.name}").to(each.tensor.device)  # as fused AdamW wants
                self.optimizer.state[each.tensor] = state = {"step": step}
                for quantity in ("exp_avg", "exp_avg_sq"):
                    state[quantity] = torch.zeros_like(each.tensor)
                    _fill(each, checkpoint, "optimizer", f"{quantity}/{each.name}", state[quantity])

    def _check_names(self, checkpoint: Checkpoint, held: Iterable[Held]) -> None:
        everyones = self.talk.gather({each.name: list(each.placement.whole) for each in held})
        wanted = None if everyones is None else {name: shape for each in everyones for name, shape in each.items()}
        there = {name: list(checkpoint.shape("model", name)) for name in checkpoint.names("model")}
        check_fits(self.talk.share(wanted), there)


def _pieces_of(held: Held, name: str, value: Tensor) -> Iterator[Piece]:
    """What this process answers for of a tensor that is cut as `held` is; of a scalar beside it, who has its start."""
    if not held.is_owned:
        return
    part = local(value.detach())
    boxes = list(held.placement.boxes(local(held.tensor.detach()), first_row=held.first_row))
    if value.ndim == 0 and held.tensor.ndim > 0:
        if any(not any(box.offset) for box in boxes):
            yield Piece.all_of(name, value)
        return
    for box in boxes:
        yield Piece(name, held.placement.whole, box.offset, part[box.inside])


def _fill(held: Held, checkpoint: Checkpoint, kind: Kind, name: str, value: Tensor) -> None:
    part = local(value.detach())
    for box in held.placement.boxes(part, first_row=held.first_row):
        into = part[box.inside]
        into.copy_(checkpoint.read(kind, name, (box.offset, tuple(into.shape))))
