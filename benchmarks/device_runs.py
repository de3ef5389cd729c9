"""What the GPU benchmarks of several parts have in common; nothing to start by itself."""

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runs import ROOT
from sortyard.runs.environment import describe_environment

STARTED = time.monotonic()


def read_arguments(description: str | None, *, name: str, parts: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Args:
        description: The script's documentation.
        name: Of the script and its result.
        parts: What can be asked for by --parts.

    Returns:
        interpret, out, parts, minutes.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpret", action="store_true", help="run small, on a CPU, under Triton's interpreter")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing that may end after this time")
    return parser.parse_args()


def begin_result(name: str, *, device: str, seed: int, what: str, facts: dict[str, Any]) -> dict[str, Any]:
    """A result without measurements: what and where, and the script's own facts."""
    environment = describe_environment(seed=seed, device=device, data_fingerprint="", command=[f"{name}.py"])
    return {
        "what": what,
        "script": f"benchmarks/{name}.py",
        "date": datetime.now(UTC).date().isoformat(),
        **facts,
        "environment": {key: environment[key] for key in ("versions", "python", "platform", "machine", "commit")},
    }


def kept_parts(path: Path, found: dict[str, Any], *, parts: Sequence[str], asked: Sequence[str]) -> dict[str, Any]:
    """What the file says of parts that are not asked for now; nothing if it is of another machine or other code."""
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("environment") != found["environment"]:
        return {}
    return {part: before[part] for part in parts if part in before and part not in asked}


def has_time(what: str, seconds: float, *, minutes: float, interpreted: bool) -> bool:
    """Whether something may still begin; says so where not. The interpreter has no deadline."""
    if interpreted or time.monotonic() - STARTED + seconds < 60 * minutes:
        return True
    print(f"left out, the time is over: {what}", flush=True)
    return False


def save(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
