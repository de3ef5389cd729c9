"""Running the ledger's commands: what is done is kept, what was begun goes on, what fails is told."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.studies.claims.steps import Step
from sortyard.studies.crew import Crew, Ended, last_words

Json = dict[str, Any]
Say = Callable[[str], None]
RECORD, LOGS = "steps.json", "logs"
UNKNOWN: Json = {}  # the origin of what an earlier version began, which did not keep it
_TAIL_LINES = 3


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
        """Whether a step was finished with these very words, of what its needs are now."""
        return self.entries.get(step.name, {}).get("problem") == "" and self._is_of_now(step)

    def left(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that are to be done: those that are not done, and those that read what is to be done.

        Args:
            steps: Each after what it needs.
        """
        found: dict[str, Step] = {}
        for step in steps:
            if not self.is_done(step) or any(name in found for name in step.needs):
                found[step.name] = step
        return list(found.values())

    def _is_of_now(self, step: Step) -> bool:
        """Whether what is there of a step was begun with these very words, of what its needs are now."""
        entry = self.entries.get(step.name, {})
        used = entry.get("needs", {})  # not kept by earlier versions
        return entry.get("command") == step.shown() and all(used[name] == self._begun(name) for name in used)

    def _begun(self, name: str) -> str | None:
        found: str | None = self.entries.get(name, {}).get("begun")
        return found

    def check_resumable(self, steps: Sequence[Step]) -> None:
        """Refuse to go on with folders that would then be taken for what they are not.

        Args:
            steps: Each after what it needs.

        Raises:
            InputError: a folder to resume was begun with other words, or of what is to be made anew.
        """
        left = {step.name: step for step in self.left(steps)}
        strange = [
            str(self.work / step.name)
            for step in left.values()
            if step.is_begun(self.work) and (not self._is_of_now(step) or any(name in left for name in step.needs))
        ]
        if strange:
            raise InputError(
                f"{', '.join(strange)}: begun by another command than now, or from what is to be made anew, so that "
                "it cannot go on; remove it, or give another --out"
            )

    def problem(self, name: str) -> str:
        """Why a step failed; "" where it did not."""
        return str(self.entries.get(name, {}).get("problem") or "")

    def note_begin(self, step: Step, *, origin: Json) -> None:
        """Keep what a step is made by, before it is; what begins anew costs anew.

        Args:
            step: The step.
            origin: Machine and code that it is made with from here on.
        """
        self._read_again()
        entry = self.entries.get(step.name, {})
        if entry.get("problem") == "" or not self._is_of_now(step):
            entry = {}
        origins = entry.get("origins", [UNKNOWN] if entry else [])
        self.entries[step.name] = {
            "command": step.shown(),
            "problem": None,
            "seconds": entry.get("seconds", 0.0),
            "processor_seconds": entry.get("processor_seconds", 0.0),
            "date": _today(),
            "machine_load": entry.get("machine_load"),
            "begun": entry.get("begun") or datetime.now(UTC).isoformat(),
            "needs": {name: self._begun(name) for name in step.needs},
            "origins": origins if origin in origins else [*origins, origin],
        }
        self._write()

    def note(self, step: Step, *, problem: str | None, ended: Ended | None) -> None:
        """Keep how a step ended; times add up over interruptions.

        Args:
            step: The step.
            problem: Why it failed; "" if it is done, None if it is to go on.
            ended: What its process took; None where none was started.
        """
        self._read_again()
        before = self.entries.get(step.name, {"origins": []})
        spent = (ended.seconds, ended.processor_seconds or 0.0) if ended else (0.0, 0.0)
        self.entries[step.name] = before | {
            "command": step.shown(),
            "problem": problem,
            "seconds": round(before.get("seconds", 0.0) + spent[0], 1),
            "processor_seconds": round(before.get("processor_seconds", 0.0) + spent[1], 1),
            "date": _today(),
            "machine_load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        }
        self._write()

    def _read_again(self) -> None:
        self.entries = self.entries | StepLog.read(self.work).entries  # another call may do other claims meanwhile

    def _write(self) -> None:
        replace_bytes(self.work / RECORD, (json.dumps(self.entries, indent=1) + "\n").encode())


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def run_steps(
    steps: Sequence[Step],
    *,
    places: Mapping[str, Path],
    origin: Json,
    jobs: int,
    minutes: float,
    say: Say,
    after: Callable[[], None],
    environment: Mapping[str, str] | None = None,
) -> StepLog:
    """Run what is not done: what must be alone one by one, then the rest, `jobs` at a time.

    A step that fails is noted with the end of its messages, what needs it is left out, and the others go on.

    Args:
        steps: As `steps.wanted` orders them: those that run alone come first, each step after what it needs.
        places: The work folder and the user's other places, by name.
        origin: Machine and code of this call, as JSON values.
        jobs: How many run at the same time.
        minutes: After so many no step is begun; those that run go on to their end.
        say: Takes a line of progress.
        after: Called after every step.
        environment: Variables that the commands have besides ours.

    Returns:
        The log.

    Raises:
        InputError: a folder was begun by another command, or from what is to be made anew; nothing was started.
        KeyboardInterrupt: the user stopped it; every command was asked to save first.
    """
    log = StepLog.read(places["work"])
    if minutes:
        log.check_resumable(steps)
    left = log.left(steps)
    one_by_one = max((place for place, step in enumerate(left, start=1) if step.alone), default=0)
    until = time.monotonic() + 60 * minutes
    shift = _Shift(
        log=log, places=places, origin=origin, say=say, after=after, until=until, missing={step.name for step in left},
        environment=environment or {},
    )  # fmt: skip
    shift.run(left[:one_by_one], at_once=1)
    shift.run(left[one_by_one:], at_once=jobs)
    return log


@dataclass
class _Shift:
    """The steps of one call."""

    log: StepLog
    places: Mapping[str, Path]
    origin: Json
    say: Say
    after: Callable[[], None]
    until: float
    missing: set[str]
    environment: Mapping[str, str]
    tried: set[str] = field(default_factory=set)
    _total: int = field(init=False)

    def __post_init__(self) -> None:
        self._total = len(self.missing)
        (self.log.work / LOGS).mkdir(parents=True, exist_ok=True)

    def run(self, steps: Sequence[Step], *, at_once: int) -> None:
        crew = Crew[Step](
            words=lambda step: step.command(self.places),
            log=self._log_file,
            ended=self._ended,
            began=self._began,
            is_ready=lambda step: time.monotonic() < self.until and not self.missing & set(step.needs),
            environment=self.environment,
        )
        crew.work(steps, at_once=at_once)
        while stuck := [step for step in steps if step.name not in self.tried and self._failed_need(step)]:
            for step in stuck:
                self._leave_out(step)

    def _log_file(self, step: Step) -> Path:
        return self.log.work / LOGS / f"{step.name.replace('/', '-')}.log"

    def _began(self, step: Step) -> None:
        self.tried.add(step.name)
        self.log.note_begin(step, origin=self.origin)
        self.say(f"{len(self.tried)}/{self._total}  {step.name}: about {step.minutes:g} min")

    def _ended(self, step: Step, ended: Ended) -> None:
        problem = None if ended.was_stopped else "" if ended.status == 0 else self._last_words(step)
        self.log.note(step, problem=problem, ended=ended)
        if problem is None:
            return
        if not problem:
            self.missing.discard(step.name)
        self.say(f"{step.name}: {f'failed: {problem}' if problem else 'done'}, {ended.seconds:.0f} s")
        self.after()

    def _failed_need(self, step: Step) -> str:
        return next((name for name in step.needs if self.log.problem(name)), "")

    def _leave_out(self, step: Step) -> None:
        failed = self._failed_need(step)
        self.tried.add(step.name)
        self.log.note(step, problem=f"{failed} failed", ended=None)
        self.say(f"{len(self.tried)}/{self._total}  {step.name}: left out, {failed} failed")

    def _last_words(self, step: Step) -> str:
        found = last_words(self._log_file(step), lines=_TAIL_LINES)
        for name, place in self.places.items():
            found = found.replace(str(place), name.upper())
        return found
