"""The kernels compile for a GPU: what an interpreter cannot tell, and a machine without a GPU can."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

TREE = {
    "make_pivots", "read_moments", "sum_tiles", "project_tiles", "partition_nodes", "split_nodes", "sum_leaves",
    "sum_nodes", "choose_nodes", "attend_forward", "attend_backward", "spread_gradients",
}  # fmt: skip
BLOCKS = {"sum_leaves", "sum_nodes", "choose_nodes", "attend_forward", "attend_backward", "spread_gradients"}
EXPERTS = {"expand", "bring_home", "sum_copies", "expand_backward", "add_outer"}
SHARED_BYTES = 227 * 1024  # that a program can have on an H100
ROOT = Path(__file__).resolve().parents[2]
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "dtype", "width", "expected", "ways"),
    [
        ("attention", "bfloat16", 64, TREE, 1),
        pytest.param("attention", "float16", 16, TREE, 4, marks=slow),
        pytest.param("attention", "float32", 64, TREE, 4, marks=slow),
        pytest.param("attention", "float64", 16, TREE, 1, marks=slow),
        pytest.param("attention", "bfloat16", 128, TREE, 4, marks=slow),
        pytest.param("causal", "bfloat16", 64, BLOCKS, 4, marks=slow),
        pytest.param("experts", "bfloat16", 256, EXPERTS, 0, marks=slow),
        pytest.param("experts", "float32", 256, EXPERTS, 0, marks=slow),
    ],
)
def test_kernels_compile_for_an_h100(
    kind: str, dtype: str, width: int, expected: set[str], ways: int, tmp_path: Path
) -> None:
    """With the default settings; in `ways` configurations of the attention's forward kernel to choose from."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.ops.gpu_compiler", kind, dtype, str(width)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()[1:]]
    names = [kernel["kernel"] for kernel in compiled]
    assert expected <= set(names)
    assert names.count("attend_forward") == ways
    for name in set(names):
        sizes = [kernel["shared_bytes"] for kernel in compiled if kernel["kernel"] == name]
        # A GPU passes over configurations of experts that are too large for it; attention has none.
        assert (min if kind == "experts" else max)(sizes) <= SHARED_BYTES, name
