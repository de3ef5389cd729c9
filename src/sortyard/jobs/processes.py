"""A run in several processes: who starts them, how they meet, and who does what only one may do."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sortyard.errors import InputError
from sortyard.recipe import Recipe
from sortyard.training.options import LoopOptions

Value = TypeVar("Value")


def must_start_others(recipe: Recipe, loop: LoopOptions) -> int:
    """How many processes this one has to start; 0 where it does the work itself, alone or as one of several."""
    from sortyard.parallel.launch import processes_here
    from sortyard.parallel.mesh import was_started_as_one_of_many

    if was_started_as_one_of_many():
        return 0
    count = processes_here(recipe.parallel, device=loop.device)
    return count if count > 1 else 0


def go_on_in_processes(path: Path, *, recipe: Recipe, count: int) -> None:
    """Take a run to its end in several processes; this one waits for them.

    Raises:
        SystemExit: with their status, where they did not get there; they have said why.
    """
    from sortyard.parallel.launch import start_processes

    status = start_processes(["resume", str(path)], count=count, max_restarts=recipe.parallel.max_restarts)
    if status:
        raise SystemExit(status)


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


def as_first_says(value: str | None) -> str:
    """What the first process passes; the others pass None."""
    from sortyard.parallel.mesh import is_one_of_many
    from sortyard.parallel.peers import Group

    said = Group.of_all().share(value) if is_one_of_many() else value
    assert said is not None
    return str(said)
