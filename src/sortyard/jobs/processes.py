"""A run in several processes: who starts them, how they meet, and who does what only one may do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sortyard.errors import InputError, LostProcessError
from sortyard.jobs.display import Display
from sortyard.jobs.sections import pretrain_section
from sortyard.parallel.options import ParallelOptions
from sortyard.recipe import Recipe
from sortyard.training.options import LoopOptions

Value = TypeVar("Value")


def must_start_others(recipe: Recipe, loop: LoopOptions) -> int:
    """How many processes this one has to start; 0 where it does the work itself, alone or as one of several.

    Raises:
        InputError: there are fewer GPUs than processes.
    """
    from sortyard.parallel.launch import processes_here
    from sortyard.parallel.mesh import num_started

    if num_started():
        return 0
    count = processes_here(recipe.parallel, device=loop.device)
    return count if count > 1 else 0


def check_layout(recipe: Recipe) -> None:
    """Refuse a layout of processes that a recipe's pretraining cannot have, before any of them meets another.

    Raises:
        InputError: naming the option that does not fit.
    """
    from sortyard.jobs.plan import pretraining_shapes
    from sortyard.parallel.mesh import num_started, resolve

    loop = pretrain_section(recipe).loop
    count = num_started() or must_start_others(recipe, loop) or 1
    layout = resolve(recipe.parallel, num_processes=count)
    if count > 1:
        check_fits(pretraining_shapes(recipe), layout, loop)


def check_fits(model: Any, layout: ParallelOptions, loop: LoopOptions) -> None:
    """Refuse a layout that a model or the rows and micro-batches of its steps cannot be cut to.

    Args:
        model: A whole head of sortyard.model, real or meta.
        layout: With dp_shard resolved.
        loop: The batches.

    Raises:
        InputError: naming the option that does not fit.
    """
    from sortyard.data.order import share_of
    from sortyard.parallel.apply import check_model

    share_of(loop.micro_batch_size, (0, layout.num_shares))
    check_model(model, layout, num_micro_batches=loop.accumulation_steps, checkpointing=loop.activation_checkpointing)


def go_on_in_processes(path: Path, *, recipe: Recipe, count: int, display: Display) -> None:
    """Take a run, which the caller has locked, to its end in several processes; this one waits for them.

    Raises:
        LostProcessError: one of them was lost, more often than the run may start again.
        SystemExit: with their status, where they did not get there for another reason; they have said why.
    """
    from sortyard.parallel.launch import start_processes
    from sortyard.runs.lock import shared_lock

    environment, descriptors = shared_lock(path)
    ending = start_processes(
        ["resume", str(path), *display.options],
        count=count,
        max_restarts=recipe.parallel.max_restarts,
        environment=environment,
        descriptors=descriptors,
    )
    if ending.status == 1:
        raise LostProcessError(f"{ending.reason}; continue with `sortyard resume {path}`")
    if ending.status:
        raise SystemExit(ending.status)


def meet(recipe: Recipe, loop: LoopOptions) -> None:
    """Meet the other processes, where this one was started as one of several.

    Raises:
        InputError: there is no GPU for this process.
    """
    from sortyard.parallel.mesh import join_processes, was_started_as_one_of_many
    from sortyard.training.session import prepare_device

    if was_started_as_one_of_many():
        join_processes(device=prepare_device(loop), timeout_seconds=2 * recipe.parallel.timeout_seconds)


def refuse_many(verb: str) -> None:
    """Refuse to be one of several processes, for verbs that know nothing of others.

    Raises:
        InputError: torchrun started this process as one of several.
    """
    from sortyard.parallel.mesh import was_started_as_one_of_many

    if was_started_as_one_of_many():
        raise InputError(f"sortyard {verb} runs in one process; start it without torchrun")


def is_first() -> bool:
    """Whether this process writes what only one may write."""
    from sortyard.parallel.mesh import is_first as first

    return first()


def first_then_others(work: Callable[[], Value]) -> Value:
    """Do work in the first process, and then in the others, who find most of it done."""
    from sortyard.parallel.mesh import wait_for_first

    with wait_for_first():
        return work()


def as_first_says(say: Callable[[], str]) -> str:
    """What the first process comes to; the others do not try, and are told."""
    from sortyard.parallel.mesh import is_one_of_many
    from sortyard.parallel.peers import Group

    said = say() if is_first() else ""
    return str(Group.of_all().share(said)) if is_one_of_many() else said
