"""Running the ledger's commands: what is done is kept, what was begun goes on, what fails is told."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sortyard.durable import replace_bytes
from sortyard.studies.claims.steps import Step

Json = dict[str, Any]
Say = Callable[[str], None]
RECORD, LOGS = "steps.json", "logs"
_TAIL_LINES = 3
_INTERRUPTED = 130


@dataclass
class StepLog:
    """What is known of the commands: in WORK/steps.json."""

    work: Path
    entries: dict[str, Json]

    @classmethod
    def read(cls, work: Path) -> "StepLog":
        """Read it; empty where there is none."""
        path = work / RECORD
        return cls(work, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})

    def is_done(self, step: Step) -> bool:
        """Whether a step was finished with these very words."""
        entry = self.entries.get(step.name, {})
        return bool(entry.get("command") == step.shown() and not entry.get("problem"))

    def problem(self, name: str) -> str:
        """Why a step failed; "" where it did not."""
        return str(self.entries.get(name, {}).get("problem", ""))

    def note(self, step: Step, *, problem: str, seconds: float, processor_seconds: float) -> None:
        """Keep how a step ended; times add up over interruptions."""
        before = self.entries.get(step.name, {})
        self.entries[step.name] = {
            "command": step.shown(),
            "problem": problem,
            "seconds": round(before.get("seconds", 0.0) + seconds, 1),
            "processor_seconds": round(before.get("processor_seconds", 0.0) + processor_seconds, 1),
            "date": datetime.now(UTC).date().isoformat(),
            "machine_load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        }
        replace_bytes(self.work / RECORD, (json.dumps(self.entries, indent=1) + "\n").encode())


def run_steps(
    steps: Sequence[Step], *, places: Mapping[str, Path], jobs: int, say: Say, after: Callable[[], None]
) -> StepLog:
    """Run what is not done: what must be alone one by one, then the rest, `jobs` at a time.

    A step that fails is noted with the end of its messages, what needs it is left out, and the others go on.

    Args:
        steps: As `steps.wanted` orders them: those that run alone come first, each step after what it needs.
        places: The work folder and the user's other places, by name.
        jobs: How many run at the same time.
        say: Takes a line of progress.
        after: Called after every step.

    Returns:
        The log.

    Raises:
        KeyboardInterrupt: the user stopped it; every command was told so first.
    """
    log = StepLog.read(places["work"])
    left = [step for step in steps if not log.is_done(step)]
    one_by_one = max((place for place, step in enumerate(left, start=1) if step.alone), default=0)
    runner = _Runner(log=log, places=places, total=len(left), say=say)
    try:
        for step in left[:one_by_one]:
            runner.run(step)
            after()
        _run_together(left[one_by_one:], runner=runner, jobs=jobs, after=after)
    except KeyboardInterrupt:
        runner.stop()
        raise
    return log


def _run_together(steps: Sequence[Step], *, runner: "_Runner", jobs: int, after: Callable[[], None]) -> None:
    waiting, names = list(steps), {step.name for step in steps}
    running: dict[Future[None], str] = {}
    finished: set[str] = set()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                ready = [step for step in waiting if not (set(step.needs) & names) - finished]
                for step in ready[: jobs - len(running)]:
                    waiting.remove(step)
                    running[pool.submit(runner.run, step)] = step.name
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    finished.add(running.pop(future))
                    future.result()
                    after()
        except KeyboardInterrupt:
            runner.stop()
            raise


class _Runner:
    """Starts commands and waits for them, and can stop those that run."""

    def __init__(self, *, log: StepLog, places: Mapping[str, Path], total: int, say: Say) -> None:
        self._log, self._places, self._total, self._say = log, places, total, say
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._begun = 0
        self._stopped = False
        (places["work"] / LOGS).mkdir(parents=True, exist_ok=True)

    def run(self, step: Step) -> None:
        """Run a step unless something that it needs has failed."""
        with self._lock:
            if self._stopped:
                return
            self._begun += 1
            place = f"{self._begun}/{self._total}  {step.name}"
        failed = [name for name in step.needs if self._log.problem(name)]
        if failed:
            self._note(step, problem=f"{failed[0]} failed", seconds=0.0, processor_seconds=0.0)
            self._say(f"{place}: left out, {failed[0]} failed")
            return
        self._say(f"{place}: about {step.minutes:g} min")
        begun = time.perf_counter()
        status, processor_seconds, tail = self._execute(step)
        seconds = time.perf_counter() - begun
        if self._stopped or status in (_INTERRUPTED, -2):
            return
        self._note(step, problem=tail if status else "", seconds=seconds, processor_seconds=processor_seconds)
        self._say(f"{place}: {f'failed: {tail}' if status else 'done'}, {seconds:.0f} s")

    def stop(self) -> None:
        """Ask every running command to save and end, and wait for it."""
        with self._lock:
            self._stopped = True
            processes = list(self._processes)
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()

    def _note(self, step: Step, *, problem: str, seconds: float, processor_seconds: float) -> None:
        with self._lock:
            self._log.note(step, problem=problem, seconds=seconds, processor_seconds=processor_seconds)

    def _execute(self, step: Step) -> tuple[int, float, str]:
        """Return exit status, processor seconds with those of the children, and the last lines of stderr."""
        path = self._places["work"] / LOGS / f"{step.name.replace('/', '-')}.log"
        with path.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "sortyard", *step.command(self._places)], stdout=file, stderr=file
            )
            with self._lock:
                self._processes.append(process)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        tail = " ".join([line for line in lines if line][-_TAIL_LINES:])
        for name, place in self._places.items():
            tail = tail.replace(str(place), name.upper())
        return process.returncode, usage.ru_utime + usage.ru_stime, tail
