"""Builds kernels.cpp with the system's compiler on first use and loads it; the result is kept in the user's cache."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Not every compiler knows its processor or has OpenMP; without OpenMP the kernels run on one core.
_WISHES = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 300

_log = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The kernels cannot be built or loaded here; plain torch does the same, slower."""


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The compiled kernels, built if this machine has not built them yet.

    Returns:
        The loaded library.

    Raises:
        BuildError: no compiler, one that cannot build them, or a file that is not to be trusted or does not load.
    """
    _first_process()
    compiler = find_compiler()
    path = _cached_path(compiler)
    if not path.exists():
        _build(compiler, path)
    _check_owner(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} does not load ({error}); delete it to have it built again") from error


@lru_cache(maxsize=1)
def why_not() -> str | None:
    """Why the compiled kernels cannot be used here; None if they can. Builds them on the first call."""
    try:
        load_library()
    except BuildError as error:
        _log.info("attention runs on plain torch: %s", error)
        return str(error)
    return None


def num_threads() -> int:
    """torch's number of threads; 1 in a forked process, where OpenMP's threads are gone and waiting for them hangs."""
    return torch.get_num_threads() if os.getpid() == _first_process() else 1


@lru_cache(maxsize=1)
def _first_process() -> int:
    """The process that loaded the library."""
    return os.getpid()


def find_compiler() -> tuple[str, ...]:
    """Return the C++ compiler's path, and the words that CXX adds.

    Raises:
        BuildError: There is none.
    """
    asked = os.environ.get("CXX")
    for words in [shlex.split(asked)] if asked else [[name] for name in _COMPILERS]:
        found = shutil.which(words[0]) if words else None
        if found is not None:
            return (found, *words[1:])
    raise BuildError(f"no C++ compiler found ({asked or ', '.join(_COMPILERS)}); install one, or set CXX to its path")


def _cached_path(compiler: tuple[str, ...]) -> Path:
    """Where the build for this source, compiler and processor lies."""
    parts = (_SOURCE.read_text(encoding="utf-8"), *_FLAGS, *compiler, _run([*compiler, "--version"]), _processor())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return _cache_folder() / f"bucket-attention-{digest}.so"


def _processor() -> str:
    """What -march=native depends on: a cache may be shared by machines of several kinds."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    kinds = ("model name", "flags", "Features", "CPU part", "isa", "cpu\t")
    found = sorted({line for line in text.splitlines() if line.startswith(kinds)})
    return "\n".join([platform.machine(), platform.processor(), *found])


def _cache_folder() -> Path:
    asked = os.environ.get("SORTYARD_CACHE")
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = (Path(asked) if asked else Path(base) / "sortyard").resolve()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise BuildError(
            f"there is no cache folder ({error}); set SORTYARD_CACHE to one that can be written"
        ) from error
    return root


def _check_owner(path: Path) -> None:
    """Code from a folder that others can write to is not run."""
    if not hasattr(os, "getuid"):
        return
    for place in (path.parent, path):
        found = place.stat()
        if found.st_uid not in (0, os.getuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise BuildError(f"{place} can be written by others; set SORTYARD_CACHE to a folder of your own (mode 700)")


def _build(compiler: tuple[str, ...], path: Path) -> None:
    """Compile beside the target and move into place, so that processes that build at once do not disturb each other."""
    _log.info("building the attention kernels with %s, once (some ten seconds)", compiler[0])
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            made, said = Path(folder) / path.name, ""
            for wishes in _WISHES:
                said = _run([*compiler, *_FLAGS, *wishes, str(_SOURCE), "-o", str(made)])
                if made.exists():
                    made.chmod(0o700)
                    made.replace(path)
                    return
    except OSError as error:
        raise BuildError(f"cannot build in {path.parent} ({error}); set SORTYARD_CACHE to another folder") from error
    raise BuildError(f"{compiler[0]} cannot build {_SOURCE.name}: {said}")


def _run(command: list[str]) -> str:
    """What a command says, its first lines; nothing of it outlives the time limit."""
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    with process:
        try:
            said, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return f"no end after {_SECONDS} seconds"
    return "\n".join(said.splitlines()[:5])
