"""What a run starts with: the session, the stepper and the records, of one process or of one among several."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from sortyard.data.batches import BatchSource
from sortyard.errors import InputError
from sortyard.objectives.total import Objective
from sortyard.parallel.activation_checkpointing import checkpoint_activations
from sortyard.parallel.compiling import check_compiler, compile_layers
from sortyard.parallel.mesh import Layout, is_one_of_many, num_processes
from sortyard.parallel.options import ParallelOptions
from sortyard.parallel.watch import NoWatch, Watch
from sortyard.runs.folder import RunFolder
from sortyard.runs.progress import Progress
from sortyard.runs.trackers import TensorBoard, Tracker, Writer
from sortyard.training.checkpoint import CheckpointStore
from sortyard.training.efficiency import Efficiency, TokenFlops, ideal_bubble_share, peak_flops
from sortyard.training.optimizer import build_optimizer
from sortyard.training.options import LoopOptions, OptimizerOptions
from sortyard.training.precision import Precision
from sortyard.training.recorder import Recorder
from sortyard.training.session import Session, prepare_device


def open_session(
    model: Any,
    *,
    objective: Objective,
    loop: LoopOptions,
    optimizer: OptimizerOptions,
    run: RunFolder,
    display: Progress,
    parallel: ParallelOptions,
    watch: NoWatch,
) -> Session:
    """A run's tensors and state before its first step, or before a checkpoint is loaded.

    Args:
        model: a head with the weights to start from; of several processes all but the first use it up.
        objective: what to minimise.
        loop: precision, recomputation and checkpoints.
        optimizer: AdamW's settings.
        run: the run's folder.
        display: told about damaged checkpoints.
        parallel: the layout of several processes.
        watch: over them.

    Raises:
        InputError: the device is not there, it cannot compile, or the layout does not fit the processes or the model.
    """
    device = prepare_device(loop)
    if loop.compile:
        _check_compiler(device)
    precision = Precision(loop.precision, device=device)
    warn = _warner(run, display)
    make_store = partial(
        CheckpointStore, run.checkpoints, keep=loop.keep_checkpoints, warn=warn, in_background=loop.async_checkpoints
    )
    if not is_one_of_many():
        model.to(device)
        model.train()
        _set_layers(model, loop)
        return Session(model, build_optimizer(model, optimizer), precision, make_store())

    from sortyard.parallel.apply import check_model, parallelize
    from sortyard.parallel.peers import Group, told_of_losses
    from sortyard.training.split_session import SplitSession

    with told_of_losses():
        layout, talk, saving = Layout.make(parallel, device=device), Group.of_all(), Group.of_all()
    check_model(
        model, layout.options, num_micro_batches=loop.accumulation_steps, checkpointing=loop.activation_checkpointing
    )
    split = parallelize(
        copy.deepcopy(model) if talk.rank == 0 else model,
        layout=layout,
        count_targets=objective.count_targets,
        autocast=precision.autocast,
        set_layers=lambda part: _set_layers(part, loop),
        counts_traffic=not loop.compile,
    )
    return SplitSession(
        model,
        optimizer=build_optimizer(split.stages, optimizer),
        precision=precision,
        store=make_store(peers=saving),
        split=split,
        talk=talk,
        watch=watch,
    )


def open_watch(run: RunFolder, parallel: ParallelOptions) -> NoWatch:
    """What finds a process that hangs, where there are several."""
    if not is_one_of_many():
        return NoWatch()
    rank, size = dist.get_rank(), num_processes()
    return Watch(run.processes, rank=rank, size=size, timeout_seconds=parallel.timeout_seconds)


def _check_compiler(device: torch.device) -> None:
    try:
        check_compiler(device)
    except InputError as error:
        raise InputError(f"loop.compile is true, but {error}; or set it to false") from None


def _warner(run: RunFolder, display: Progress) -> Callable[[str], None]:
    def warn(message: str) -> None:
        run.append_event("warning", message=message)
        display.message(f"warning: {message}")

    return warn


def _set_layers(model: Any, loop: LoopOptions) -> None:
    checkpoint_activations(model, loop.activation_checkpointing, loop.activation_checkpointing_every)
    if loop.compile:
        compile_layers(model)


def open_recorder(
    session: Session,
    run: RunFolder,
    *,
    loop: LoopOptions,
    display: Progress,
    parallel: ParallelOptions,
    source: BatchSource,
    flops: TokenFlops | None,
) -> Recorder:
    """The records of a run, cut back to where it goes on.

    Args:
        session: the run, restored.
        run: its folder.
        loop: what is written.
        display: what a person sees.
        parallel: the layout.
        source: the training data.
        flops: of a token.
    """
    step = session.state.step - session.state.is_pending  # what is to be evaluated was recorded in part at most
    run.cut_after(step)
    writers: list[Writer] = [TensorBoard(run, first_step=step)] if loop.tensorboard else []
    writers += [Tracker(name, run, warn=_warner(run, display)) for name in loop.trackers]
    precision = session.precision
    return Recorder(
        run,
        progress=display,
        efficiency=Efficiency(
            flops,
            peak=None if flops is None else peak_flops(precision.device, dtype=precision.dtype or torch.float32),
            num_processes=num_processes(),
            ideal_bubble_share=ideal_bubble_share(parallel, loop) if is_one_of_many() else None,
        ),
        steps_per_epoch=source.steps_per_epoch,
        writers=writers,
    )
