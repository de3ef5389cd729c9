"""Builds kernels.cpp with the system's compiler on first use and loads it; the result is kept in the user's cache."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
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
        BuildError: no compiler, a compiler that cannot build them, or a file that does not load.
    """
    path = _cached_path(_find_compiler())
    if not path.exists():
        _build(_find_compiler(), path)
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


def _find_compiler() -> str:
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else _COMPILERS:
        found = shutil.which(name)
        if found is not None:
            return found
    raise BuildError(f"no C++ compiler found ({asked or ', '.join(_COMPILERS)}); install one, or set CXX to its path")


def _cached_path(compiler: str) -> Path:
    """Where the build for this source, compiler and processor lies."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (_SOURCE.read_text(), *_FLAGS, compiler, version, _processor())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return _cache_folder() / f"bucket-attention-{digest}.so"


def _processor() -> str:
    """What -march=native depends on: a cache may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _cache_folder() -> Path:
    asked = os.environ.get("SORTYARD_CACHE")
    root = Path(asked) if asked else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sortyard"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"cannot write to {root} ({error.strerror}); set SORTYARD_CACHE to another folder") from error
    return root


def _build(compiler: str, path: Path) -> None:
    """Compile beside the target and move into place, so that processes that build at once do not disturb each other."""
    _log.info("building the attention kernels with %s, once (some ten seconds)", compiler)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            made = Path(folder) / path.name
            # Not every compiler has OpenMP; without it the kernels run on one core.
            errors = [_run(compiler, [*_FLAGS, *extra], made) for extra in (["-fopenmp"], [])]
            if not made.exists():
                raise BuildError(f"{compiler} cannot build {_SOURCE.name}: {errors[-1]}")
            made.replace(path)
    except OSError as error:
        raise BuildError(f"cannot build in {path.parent} ({error}); set SORTYARD_CACHE to another folder") from error


def _run(compiler: str, flags: list[str], out: Path) -> str:
    """Compile unless that is done; the first lines of the errors."""
    if out.exists():
        return ""
    command = [compiler, *flags, str(_SOURCE), "-o", str(out)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {_SECONDS} seconds"
    return "\n".join(done.stderr.splitlines()[:5])
