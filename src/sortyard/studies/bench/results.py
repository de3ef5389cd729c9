"""A benchmark's result: what was asked, where it ran, and its cells; kept as JSON, continued where it stops."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import sortyard
from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.runs.environment import describe_environment

Json = dict[str, Any]
RESULTS = Path("benchmarks/results")
NOT_INSTALLED = "not installed"
_SAME = ("settings", "seed", "threads", "code", "versions", "python", "platform", "machine")
_SOURCES = {".py", ".cpp", ".h", ".hpp", ".cu"}


@dataclass
class BenchResult:
    """One benchmark.

    Attributes:
        name: The files are NAME.json and NAME.html.
        what: One sentence that says what the numbers are.
        command: The newest command line, without folders of this machine.
        seed: Seed of everything drawn.
        threads: Threads of torch.
        settings: Whatever changes the value of a cell.
        code: Digest of the measured code, so that cells of different code never stand in one result.
        versions: Versions by package, those of peers included; "not installed" where there is none.
        python: Python's version.
        platform: The operating system.
        machine: Processor, cores and device.
        commit: The checkout's commit; None when installed.
        date: The day of the newest cell.
        cells: What was measured, by key.
        summary: What follows from the cells.
        complete: Whether every cell that was asked for is there.
        earlier_commands: Other command lines, before this one, that some cells come from.
    """

    name: str
    what: str
    command: str
    seed: int
    threads: int
    settings: Json
    code: str
    versions: dict[str, str]
    python: str
    platform: str
    machine: Json
    commit: str | None
    date: str
    cells: dict[str, Json] = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    complete: bool = False
    earlier_commands: list[str] = field(default_factory=list)

    def record(self) -> Json:
        """Return the result as JSON values."""
        return asdict(self)


def new_result(
    name: str,
    *,
    what: str,
    command: str,
    seed: int,
    threads: int,
    device: str,
    settings: Mapping[str, Any],
    packages: Sequence[str] = (),
    sources: Sequence[str] = ("ops",),
) -> BenchResult:
    """Begin a result: describe the machine, the versions and the code as they are now.

    Args:
        name: The result's name, such as "attention".
        what: One sentence that says what the numbers are.
        command: The command line that repeats it.
        seed: Seed of everything drawn.
        threads: Threads of torch.
        device: "cpu", "cuda" or "cuda:0".
        settings: Whatever changes the value of a cell, as JSON values.
        packages: Distributions beyond the library's own whose versions matter.
        sources: Folders of the library whose code is measured.

    Returns:
        A result without cells.
    """
    name_of_device = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    found = describe_environment(seed=seed, device=name_of_device, data_fingerprint="", command=["sortyard"])
    versions = {package: known or NOT_INSTALLED for package, known in found["versions"].items()}
    return BenchResult(
        name=name,
        what=what,
        command=command,
        seed=seed,
        threads=threads,
        settings=json.loads(json.dumps(dict(settings))),
        code=code_digest(sources),
        versions=versions | {package: version_of(package) for package in packages},
        python=found["python"],
        platform=found["platform"],
        machine=found["machine"],
        commit=found["commit"],
        date=_today(),
    )


def resume_result(begun: BenchResult, *, folder: Path, fresh: bool) -> BenchResult:
    """Take over the cells that an earlier run of the same command on the same machine left.

    Args:
        begun: The result as `new_result` made it.
        folder: Where NAME.json may be.
        fresh: Whether to start over, whatever is there.

    Returns:
        The result, with the earlier cells where there are some.

    Raises:
        InputError: the file there is no result, or one of other settings, code or machine.
    """
    path = folder / f"{begun.name}.json"
    if fresh or not path.exists():
        return begun
    remedy = "--fresh replaces it, --out names another folder"
    try:
        stored = BenchResult(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no result of this benchmark; {remedy}") from error
    differ = [name for name in _SAME if getattr(stored, name) != getattr(begun, name)]
    if differ:
        raise InputError(f"{path} holds a result with other {' and '.join(differ)}; {remedy}")
    begun.cells = stored.cells
    commands = dict.fromkeys([*stored.earlier_commands, stored.command]) if stored.cells else {}
    begun.earlier_commands = [command for command in commands if command != begun.command]
    return begun


def save_result(result: BenchResult, *, folder: Path) -> Path:
    """Write NAME.json so that a crash leaves the old file or the new one.

    Args:
        result: The result as far as it goes.
        folder: An existing folder.

    Returns:
        The file.
    """
    result.date = _today()
    path = folder / f"{result.name}.json"
    replace_bytes(path, (json.dumps(result.record(), indent=1, allow_nan=False) + "\n").encode())
    return path


def result_folder(out: Path | None) -> Path:
    """The folder that results go to: the one named, else benchmarks/results where it exists, else the current one."""
    folder = out if out is not None else (RESULTS if RESULTS.is_dir() else Path())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def version_of(package: str) -> str:
    """The version of an installed distribution, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def code_digest(sources: Sequence[str]) -> str:
    """A digest of some folders' source: what is measured, whatever the commit says about the rest."""
    digest = hashlib.sha256()
    for folder in (Path(sortyard.__file__).parent / name for name in sources):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in _SOURCES):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def bench_command(verb: str, words: Mapping[str, object]) -> str:
    """Return the command line of a verb of `sortyard bench`.

    Args:
        verb: Such as attention.
        words: Options and their values, in order; an empty or infinite value leaves its option out.
    """
    given = {option: f"{value:g}" if isinstance(value, float) else str(value) for option, value in words.items()}
    return " ".join(
        ["sortyard bench", verb, *(f"{name} {value}" for name, value in given.items() if value not in ("", "inf"))]
    )
