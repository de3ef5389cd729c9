"""Where a run was made: versions, machine, commit and command line."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("sortyard", "torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy")


def finds_gpu(wanted: str) -> bool:
    """Whether a run that wants "auto", "cpu" or "cuda" gets a GPU here."""
    import torch

    return wanted != "cpu" and torch.cuda.is_available()


def describe_environment(*, seed: int, device: str, data_fingerprint: str, command: list[str]) -> dict[str, Any]:
    """What one needs to know to repeat a run, ready for env.json.

    Args:
        seed: the run's seed.
        device: the device's name, such as "cpu" or "cuda: NVIDIA H100".
        data_fingerprint: digest of the training data.
        command: the command line, word by word; of the program only the name is kept.

    Returns:
        A flat mapping of JSON values, but for the versions and the machine, which are mappings themselves.
    """
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "device": device},
        "commit": _commit(),
        "seed": seed,
        "command": shlex.join([_program(command[0]), *command[1:]]),
        "data_fingerprint": data_fingerprint,
    }


def _program(path: str) -> str:
    """Name a program as it is typed: its script's name, or the package's where `python -m` runs `__main__.py`."""
    script = Path(path)
    return script.parent.name if script.name == "__main__.py" else script.name.removesuffix(".exe")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout this package runs from, with "-dirty" after local changes; None when installed."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return None
    question = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
