"""Compiled layers train as eager ones do, are compiled a bounded number of times, and leave a model as it was."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sortyard.errors import InputError
from sortyard.ops.bucket_attention.compiled.library import BuildError
from sortyard.parallel import compiling
from sortyard.training.opening import _check_compiler

CHECKS = (
    "gradients, dense", "gradients, tree and experts", "other lengths", "long rows", "hooks", "training",
    pytest.param("gradients, causal", marks=pytest.mark.slow),
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_compiled_layers(check: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.parallel.compiled_layers", check, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_compiling_needs_is_looked_for_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def finds_none() -> None:
        raise BuildError("no C++ compiler was found")

    monkeypatch.setattr(compiling, "find_compiler", finds_none)
    with pytest.raises(InputError, match=r"loop.compile is true, but .* no C\+\+ compiler .* set it to false"):
        _check_compiler(torch.device("cpu"))
    monkeypatch.setattr(compiling, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="Triton is not installed"):
        _check_compiler(torch.device("cuda"))
