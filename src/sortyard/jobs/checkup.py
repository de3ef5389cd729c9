"""Is this machine fit to train? Every finding comes with what to do about it."""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from sortyard.evaluation.bf16 import has_bf16

GIB = 1 << 30
HUB = ("huggingface.co", 443)


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        level: `ok`, `note` (works, but worth knowing) or `blocking` (nothing will train until it is mended).
        found: What is there.
        advice: What to do; empty when all is well.
    """

    name: str
    level: Literal["ok", "note", "blocking"]
    found: str
    advice: str = ""


def examine(folder: Path) -> Iterator[Finding]:
    """Looks at everything a run depends on.

    Args:
        folder: Where runs would be written.

    Yields:
        The findings as they are made.
    """
    yield _python()
    yield from _packages()
    checks: tuple[Callable[[], Finding], ...] = (
        _torchvision,
        _transformers_models,
        _device,
        _attention,
        _threads,
        _memory,
    )
    for check in checks:
        yield check()
    yield _disk(folder)
    yield _network()


def _python() -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding("python", "ok", found)
    return Finding("python", "blocking", found, "use Python 3.11, 3.12 or 3.13")


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    for line in metadata.requires("sortyard") or ():
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        advice = f"pip install '{need.name}{need.specifier}'"
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Finding(need.name, "blocking", "not installed", advice)
            continue
        fits = need.specifier.contains(version, prereleases=True)
        found = version if fits else f"{version}, but {need.specifier} is needed"
        yield Finding(need.name, "ok" if fits else "blocking", found, "" if fits else advice)


def _torchvision() -> Finding:
    """Detects the torchvision wheel that does not fit the CPU build of torch and breaks transformers with it."""
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return Finding("torchvision", "ok", "not installed, and not needed")
    try:
        import torchvision  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except Exception as error:
        advice = "pip uninstall torchvision; sortyard needs none, and a broken one breaks transformers"
        return Finding("torchvision", "blocking", f"{version} fails: {_first_line(error)}", advice)
    return Finding("torchvision", "ok", version)


def _transformers_models() -> Finding:
    try:
        from transformers import BertModel  # noqa: F401
    except Exception as error:
        return Finding("models load", "blocking", _first_line(error), "mend the packages named above, then try again")
    return Finding("models load", "ok", "transformers imports its models")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _device() -> Finding:
    try:
        import torch
    except Exception as error:
        return Finding("device", "blocking", _first_line(error), "reinstall torch")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        bf16 = "bf16" if has_bf16("cuda") else "no bf16: use precision fp16 or fp32"
        name = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / GIB:.0f} GiB, {bf16}"
        return Finding("device", "ok", name)
    found = f"CPU, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    if has_bf16("cpu"):
        return Finding(
            "device", "ok", f"{found}, bf16", "choose small recipes; precision: bf16 is faster than fp32 here"
        )
    return Finding("device", "ok", found, "choose small recipes, in fp32: this processor has no bf16 instructions")


def _attention() -> Finding:
    """Which backend bucket attention takes; builds the compiled kernels if they are not there yet."""
    import torch

    from sortyard.ops.bucket_attention import choose_backend
    from sortyard.ops.bucket_attention.compiled import why_not

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        backend = choose_backend(device=device)
    except ValueError as error:
        return Finding("attention", "blocking", str(error), "unset SORTYARD_BACKEND, or set it to cpu")
    if device == "cpu" and backend == "cpu" and why_not() is not None:
        return Finding("attention", "note", f"plain torch: {why_not()}", "a C++ compiler makes it several times faster")
    return Finding("attention", "ok", f"backend {backend!r}")


def _threads() -> Finding:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"torch uses {threads} of {cores} cores"
    if threads > cores:
        return Finding("threads", "note", found, f"set OMP_NUM_THREADS={cores} or loop.num_threads={cores}")
    if threads < cores:
        return Finding("threads", "note", found, f"set loop.num_threads={cores} to use them all")
    return Finding("threads", "ok", found)


def available_memory() -> int | None:
    """Returns the bytes of main memory that are free for a new process, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    free = fields.get("MemAvailable")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free if free is not None else limit, max(0, limit - used))


def _memory() -> Finding:
    free = available_memory()
    if free is None:
        return Finding("memory", "ok", "the system does not say how much is free")
    found = f"{free / GIB:.1f} GiB free"
    if free < 2 * GIB:
        return Finding("memory", "note", found, "close other programs; the demo needs about 2 GiB")
    return Finding("memory", "ok", found)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free at {folder.resolve()}"
    if not os.access(folder, os.W_OK):
        return Finding("disk", "blocking", f"{folder.resolve()} cannot be written", "go to a folder of yours")
    if free < GIB:
        return Finding("disk", "note", found, "make room, or lower loop.keep_checkpoints")
    return Finding("disk", "ok", found)


def _network() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return Finding("network", "ok", "switched off by HF_HUB_OFFLINE; local files need none")
    try:
        socket.create_connection(HUB, timeout=2).close()
    except OSError:
        advice = "nothing to do: `demo` and local files need none; only hub names in recipes do"
        return Finding("network", "note", "the Hugging Face hub cannot be reached", advice)
    return Finding("network", "ok", "the Hugging Face hub answers")
