"""Set up `.venv` for this checkout: run by every make target, quick when there is nothing to do.

Needs only Python 3.11 to 3.13 with its standard library. What is installed: the package in editable mode with its `dev`
extra, at the versions of constraints.txt, which are the ones the project was tested with.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed.sha256"
SUPPORTED = ((3, 11), (3, 13))


def version_of(python: str) -> tuple[int, int] | None:
    """Major and minor version of an interpreter that really starts; None for a missing or broken one."""
    try:
        answer = subprocess.run(
            [python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        major, minor = answer.stdout.split()
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def supported(version: tuple[int, int] | None) -> bool:
    return version is not None and SUPPORTED[0] <= version <= SUPPORTED[1]


def find_python() -> str:
    """This interpreter if it is supported, else the newest supported one on PATH."""
    candidates = [sys.executable, *(f"python3.{minor}" for minor in (13, 12, 11))]
    for candidate in candidates:
        if supported(version_of(candidate)):
            return candidate
    sys.exit(
        f"sortyard needs Python 3.11 to 3.13 with venv and pip; {sys.executable} is {sys.version.split()[0]} and no "
        "other was found on PATH. Install one and run `make setup PYTHON=/path/to/python3.12`."
    )


def fingerprint(python: str) -> str:
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    parts.append(f"{ROOT} {version_of(python)}".encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def install(python: str) -> None:
    if VENV.exists():
        shutil.rmtree(VENV)
    start = time.perf_counter()
    print(f"[setup] 1/2 creating {VENV.name} with {python}", flush=True)
    subprocess.run([python, "-m", "venv", str(VENV)], check=True)
    print("[setup] 2/2 installing sortyard and its tools (a minute or two)", flush=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", "constraints.txt", "--editable", ".[dev]"], check=True, cwd=ROOT)
    print(f"[setup] ready in {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    python = find_python()
    wanted = fingerprint(python)
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    try:
        install(python)
    except subprocess.CalledProcessError as error:
        sys.exit(f"[setup] failed: {' '.join(map(str, error.cmd))}\nMend what it says above and run the command again.")
    except KeyboardInterrupt:
        sys.exit(130)
    aside = STAMP.with_suffix(".new")
    aside.write_text(wanted)
    os.replace(aside, STAMP)


if __name__ == "__main__":
    main()
