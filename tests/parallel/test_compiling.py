"""Compiled layers train as eager ones do, are compiled a bounded number of times, and leave a model as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = (
    "gradients, dense", "gradients, tree and experts", "other lengths", "hooks", "training",
    pytest.param("gradients, causal", marks=pytest.mark.slow),
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_compiled_layers(check: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.parallel.compiled_layers", check, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
