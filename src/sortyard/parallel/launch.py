"""Starting the processes of a run on this machine, watching them, and starting them again when one is lost."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from sortyard.errors import InputError
from sortyard.parallel.options import ParallelOptions
from sortyard.stop_requests import Requests

ADDRESS = "127.0.0.1"
LOSS_SECONDS = 5.0  # for processes to leave by themselves that another one has left
STOP_SECONDS = 30.0  # the same, where that one was told to stop: the others may still be saving
REMIND_SECONDS = 0.5  # one in training only notes the first request to end, and may have failed since
POLL_SECONDS = 0.05
INPUT_AT_FAULT = 2
STOPS = {status: 128 + number for number in (signal.SIGINT, signal.SIGTERM) for status in (128 + number, -number)}


@dataclass(frozen=True)
class Ending:
    """How the processes of a run ended.

    Args:
        status: 0 done, 2 the input is at fault, 130 and 143 stopped, 1 anything else.
        reason: for 1: which process was lost, and how.
    """

    status: int
    reason: str = ""


def processes_here(options: ParallelOptions, *, device: str) -> int:
    """Processes to start on this machine for a layout: dp_shard 0 takes every GPU, and on a CPU one.

    Args:
        options: the layout.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        InputError: there are fewer GPUs than processes.
    """
    least = options.num_processes()
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if 0 < gpus < least:
        raise InputError(
            f"parallel: {least} processes need a GPU each, and this machine has {gpus}; change the sizes, start the "
            "run on several machines by torchrun, or set loop.device to cpu"
        )
    return least if options.dp_shard else max(1, gpus // least) * least


def start_processes(
    words: Sequence[str],
    *,
    count: int,
    max_restarts: int,
    environment: Mapping[str, str],
    descriptors: Sequence[int] = (),
) -> Ending:
    """Run a command line of sortyard in several processes that meet each other, and wait for their end.

    When one of them is lost, the others are ended; then all are started again, as often as allowed. Where one says that
    the input is at fault, or was told to stop, it would be the same again: the others are ended, and that is all. A
    SIGTERM or Ctrl-C is passed on to all of them, for as long as they need; a second one ends them at once.

    Args:
        words: after the program's name.
        count: number of processes.
        max_restarts: how often.
        environment: variables to set for them.
        descriptors: open files that they inherit.
    """
    with Requests() as requests:
        for attempt in range(max_restarts + 1):
            own = dict(environment) | {"TORCHELASTIC_RESTART_COUNT": str(attempt)}
            with _Processes(words, count=count, environment=own, descriptors=descriptors) as processes:
                ending = processes.wait(requests)
            if ending.status != 1 or requests.received or attempt == max_restarts:
                break
            warnings.warn(f"{ending.reason}: all start again ({attempt + 1} of {max_restarts} times)", stacklevel=2)
    return ending


class _Processes:
    """Processes that meet each other, started when entered; none of them is left when it is left.

    Their standard output goes nowhere: what is to be said of the run's end, the one that started them says.
    """

    def __init__(
        self, words: Sequence[str], *, count: int, environment: Mapping[str, str], descriptors: Sequence[int]
    ) -> None:
        self._command = [sys.executable, "-m", "sortyard", *words]
        self._count = count
        self._environment = environment
        self._descriptors = descriptors
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._store: TCPStore | None = None

    def __enter__(self) -> Self:
        # One store a start: processes must not meet those before them (pytorch issue 135712).
        self._store = TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
        threads = str(max(1, (os.cpu_count() or 1) // self._count))
        shared = {"OMP_NUM_THREADS": threads} | dict(os.environ) | dict(self._environment)
        shared |= {"MASTER_ADDR": ADDRESS, "MASTER_PORT": str(self._store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        shared |= {"WORLD_SIZE": str(self._count), "LOCAL_WORLD_SIZE": str(self._count)}
        try:
            for rank in range(self._count):
                self._running[rank] = subprocess.Popen(
                    self._command,
                    env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=self._descriptors,
                    start_new_session=True,  # a terminal's Ctrl-C reaches them once, by the one that started them
                )
        except BaseException:  # no memory for one more: those before it would wait for it
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._send(signal.SIGKILL)
        for process in self._running.values():
            process.wait()
        self._store = None

    def wait(self, requests: Requests) -> Ending:
        """Wait for all of them; when one fails, or the person asks for it, end the others."""
        first, passed_on = None, 0
        deadline = remind_at = float("inf")
        while self._running:
            time.sleep(POLL_SECONDS)
            if len(requests.noted) > passed_on:
                self._send(requests.noted[0] if passed_on == 0 else signal.SIGKILL)
                passed_on += 1
            failed = self._failed()
            if failed and first is None:
                first = min(failed, key=lambda each: each[1])  # who was killed, rather than who noticed it
                deadline = time.monotonic() + (STOP_SECONDS if first[1] in STOPS else LOSS_SECONDS)
                remind_at = deadline if first[1] in STOPS else time.monotonic()
            if time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            elif time.monotonic() > remind_at:
                self._send(signal.SIGTERM)
                remind_at += REMIND_SECONDS
        if first is None:
            return Ending(0)
        if requests.received and first[1] < 0:
            return Ending(128 + requests.received)
        return self._ending(*first)

    def _failed(self) -> list[tuple[int, int]]:
        """Rank and exit status of processes that have failed since the last call."""
        ended = [(rank, process.poll()) for rank, process in self._running.items()]
        for rank, status in ended:
            if status is not None:
                del self._running[rank]
        return [(rank, status) for rank, status in ended if status]

    def _send(self, number: int) -> None:
        for process in self._running.values():
            process.send_signal(number)

    def _ending(self, rank: int, status: int) -> Ending:
        if status in (*STOPS, INPUT_AT_FAULT):
            return Ending(STOPS.get(status, status))
        how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"failed (exit status {status})"
        return Ending(1, f"process {rank} of {self._count} {how}")
