"""Cells one after another, or in several processes of their own."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context

import torch

from sortyard.studies.sparsity.cores import Setting
from sortyard.studies.sparsity.measuring import Json, Workbench, measure_cell
from sortyard.studies.sparsity.plan import Cell

Work = tuple[Cell, Setting | None]
_bench: list[Workbench] = []  # of a process of the pool, which gets it once and not with every cell


def measure_all(
    work: Iterable[Work], bench: Workbench, *, jobs: int, threads: int, fits: Callable[[Cell], bool]
) -> Iterator[tuple[Cell, Json]]:
    """Measure cells in their order, as far as time allows.

    Args:
        work: Cells and their settings.
        bench: The model and the data.
        jobs: Processes; with 1 everything is done in this one.
        threads: Threads of torch in each.
        fits: Asked just before a cell would begin whether it may.

    Yields:
        Each cell and what was found, as it ends.
    """
    if jobs == 1:
        torch.set_num_threads(threads)
        yield from ((cell, measure_cell(cell, setting, bench)) for cell, setting in work if fits(cell))
        return
    waiting, running = iter(work), dict[Future[Json], Cell]()
    executor = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(bench, threads))
    try:
        while True:
            while len(running) < jobs and (item := next((item for item in waiting if fits(item[0])), None)):
                running[executor.submit(_measure, *item)] = item[0]
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin(bench: Workbench, threads: int) -> None:
    torch.set_num_threads(threads)
    _bench[:] = [bench]


def _measure(cell: Cell, setting: Setting | None) -> Json:
    return measure_cell(cell, setting, _bench[0])
