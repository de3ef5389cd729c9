"""Processes of a run as torchrun would start them, quickly: forked from one that has imported everything.

Each can be made to note the samples that it reads, or to hang while it reads the rows of a step or evaluates.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["sortyard.cli.main", "sortyard.jobs.pretraining", "sortyard.training.loop", "sortyard.training.split_session"]
)


def launch(
    folder: Path,
    words: Sequence[str],
    *,
    size: int,
    hang: tuple[int, int] | None = None,
    hangs_in_evaluation: bool = False,
    **environment: str,
) -> list[BaseProcess]:
    """Start the processes of a run; 1 is a plain one.

    Args:
        folder: where they work; they note samples in samples-RANK.jsonl and what they print in log-RANK.txt there.
        words: of the command line.
        size: how many.
        hang: (rank, step) of the process that hangs while it reads that step's rows, counted from 0.
        hangs_in_evaluation: whether the first process hangs after the first batch of an evaluation.
        environment: further variables; with SHARE_GPU they meet on one GPU.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        own = environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if size > 1 else dict(environment)
        if size > 1:
            own |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        hangs_at = hang[1] if hang is not None and hang[0] == rank else -1
        process: Any = _context.Process(
            target=_run, args=(str(folder), list(words), rank, own, hangs_at, hangs_in_evaluation)
        )
        process.start()
        processes.append(process)
    return processes


def statuses(processes: Sequence[BaseProcess], *, patience: float = 240) -> list[int | None]:
    """Exit status of each; None for one that does not end, which is killed."""
    deadline = time.monotonic() + patience
    found = []
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
        found.append(process.exitcode)
        process.kill()
    return found


def read_samples(folder: Path) -> dict[int, list[tuple[int, int]]]:
    """The (epoch, row) that the processes read for each step, in the order of ranks."""
    found: dict[int, list[tuple[int, int]]] = {}
    for path in sorted(folder.glob("samples-*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found.setdefault(record["step"], []).extend((epoch, row) for epoch, row in record["samples"])
    return found


def _run(
    folder: str, words: list[str], rank: int, environment: dict[str, str], hangs_at: int, hangs_in_evaluation: bool
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    log = os.open(f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    import torch

    from sortyard.cli.main import main

    torch.set_num_threads(1)
    if "SHARE_GPU" in os.environ:
        from tests.parallel.one_gpu import share_gpu

        share_gpu()
    _note_samples(rank, hangs_at)
    if hangs_in_evaluation:
        _hang_after_a_batch()
    sys.exit(main(words))


def _note_samples(rank: int, hangs_at: int) -> None:
    """Wrap what reads rows, so that each step's samples are noted before they are used."""
    from sortyard.data import batches

    collate, read = batches.collate_rows, batches._PackedSource.step
    seen: list[tuple[int, int]] = []

    def collate_rows(rows: Any, samples: Any, **settings: Any) -> Any:
        seen.extend(samples)
        return collate(rows, samples, **settings)

    def step(self: Any, number: int, *, share: tuple[int, int] = (0, 1)) -> Any:
        seen.clear()
        if number == hangs_at:
            time.sleep(600)
        found = read(self, number, share=share)
        with Path(f"samples-{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": number, "samples": seen}) + "\n")
        return found

    batches.collate_rows, batches._PackedSource.step = collate_rows, step  # type: ignore[assignment, method-assign]


def _hang_after_a_batch() -> None:
    from sortyard.evaluation import perplexity

    sums = perplexity._batch_sums

    def batch_sums(*args: Any, **settings: Any) -> Any:
        sums(*args, **settings)
        time.sleep(600)

    perplexity._batch_sums = batch_sums
