"""Peak extra memory of one call, measured in a fresh process so that nothing measured before leaves a trace.

Run as a module, this is the child: it reads the question from stdin and prints the answer as one line of JSON.
"""

import ctypes
import gc
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

Json = dict[str, Any]
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Probe:
    """What the child measures.

    Attributes:
        call: The work, on inputs that are allocated and written already.
        warm: The same work on small inputs, so that libraries and kernels are loaded before.
    """

    call: Callable[[], object]
    warm: Callable[[], object]


@dataclass(frozen=True)
class Peak:
    """What a call needs on top of its inputs: results, gradients and everything in between.

    Attributes:
        num_bytes: The peak; None where it could not be measured.
        method: Where the number comes from.
        problem: Why there is no number; empty otherwise.
    """

    num_bytes: int | None
    method: str
    problem: str = ""


def peak_extra_memory(
    target: str, arguments: Mapping[str, Any], *, device: str, threads: int, timeout_seconds: float | None = None
) -> Peak:
    """Measure the peak extra memory of one call in a fresh child process.

    Args:
        target: "module:function"; the child calls it with `arguments`, and it returns a `Probe`.
        arguments: Keyword arguments of the function, as JSON values.
        device: "cpu" (resident set size) or "cuda" (torch's allocator).
        threads: Threads of torch in the child.
        timeout_seconds: The child is ended after so many seconds; never if left out.

    Returns:
        The peak, or why there is none.
    """
    # Blocks of 64 KiB and more go back to the system when they are freed, so that the peak is of what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    question = {"target": target, "arguments": dict(arguments), "device": device, "threads": threads}
    command = [sys.executable, "-m", "sortyard.studies.bench.memory"]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(question),
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Peak(None, "", f"took more than {timeout_seconds:.0f} s")
    if ended.returncode == -9:
        return Peak(None, "", "killed, most likely for want of memory")
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        return Peak(None, "", lines[-1] if lines else f"ended with status {ended.returncode}")
    return Peak(**json.loads(ended.stdout.splitlines()[-1]))


def peak_allocated(call: Callable[[], object], *, device: str) -> Peak:
    """Measure the peak of what torch's allocator hands out during one call in this process, on top of what it holds.

    Exact and the same on a busy machine, but blind to memory that others take; the call runs under torch's profiler on
    a CPU, so that its time says nothing.

    Args:
        call: The work; what runs for the first time in it counts, so run it before.
        device: "cpu" or "cuda".
    """
    if device.startswith("cuda"):
        num_bytes, method = _on_cuda(call)
        return Peak(num_bytes, method)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes of its start and end
    from torch.profiler import ProfilerActivity, profile

    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            call()
        found.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    sizes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    level = list(accumulate(size for _, size in sizes))
    return Peak(max([0, *level]), "allocations of torch by its profiler")


def _answer(question: Json) -> Json:
    torch.set_num_threads(question["threads"])
    module, _, function = question["target"].partition(":")
    probe: Probe = getattr(importlib.import_module(module), function)(**question["arguments"])
    probe.warm()
    gc.collect()
    measure = _on_cuda if question["device"].startswith("cuda") else _on_cpu
    num_bytes, method = measure(probe.call)
    return {"num_bytes": max(0, num_bytes), "method": method}


def _on_cuda(call: Callable[[], object]) -> tuple[int, str]:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, "torch.cuda.max_memory_allocated"


def _on_cpu(call: Callable[[], object]) -> tuple[int, str]:
    if not _STATUS.exists():
        before = _highest_resident()
        call()
        return _highest_resident() - before, "growth of ru_maxrss"
    _return_free_memory()
    is_reset = _forget_the_peak()
    before = _status_bytes("VmRSS")
    call()
    return _status_bytes("VmHWM") - before, "VmHWM after less VmRSS before" + ("" if is_reset else ", peak not reset")


def _return_free_memory() -> None:
    """Hand free heap back, or the call would use it again without being seen; only glibc knows how."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _forget_the_peak() -> bool:
    """Let the kernel count the highest resident size anew; imports may have stood higher than the inputs do."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def _highest_resident() -> int:
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
