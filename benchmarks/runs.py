"""Runs of the command line that a benchmark starts, resumes and reads; nothing to start by itself."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run(verb: str, *arguments: str, out: Path) -> None:
    """Start a run, or resume the one that was begun, which does nothing if it is finished; note the processor time."""
    begun = (out / "resolved.yaml").exists()
    words = ["resume", str(out)] if begun else [verb, *arguments, "--out", str(out)]
    spent = sortyard(*words)
    record = _record_of(out)
    record.write_text(str((float(record.read_text()) if begun and record.exists() else 0.0) + spent))


def sortyard(*words: str) -> float:
    """Run a verb; returns its processor seconds."""
    command = [sys.executable, "-m", "sortyard", *words, "-q"]
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return usage.ru_utime + usage.ru_stime


def processor_seconds(out: Path) -> int | None:
    """Processor seconds of all of a run's processes; None where one was not noted."""
    record = _record_of(out)
    return round(float(record.read_text())) if record.exists() else None


def _record_of(out: Path) -> Path:
    return out.with_suffix(".processor_seconds")


def lines_of(out: Path, kind: str) -> list[dict[str, Any]]:
    """A run's metrics of one kind, "train" or "eval", oldest first."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def origin(out: Path) -> dict[str, Any]:
    """Today's date, and the environment of a run."""
    environment = json.loads((out / "env.json").read_text())
    environment.pop("command")  # it names folders of this machine
    return {"date": datetime.now(UTC).date().isoformat(), "environment": environment}


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write benchmarks/results/NAME.json."""
    (ROOT / "benchmarks" / "results" / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
