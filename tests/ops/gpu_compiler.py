"""Compile the Triton kernels of one call for an H100, on a machine that needs no GPU; nothing is run.

Run as `python -m tests.ops.gpu_compiler KIND DTYPE WIDTH`: attention, causal or experts. Every launch of a forward
and a backward pass is turned into a compilation, in all configurations that a GPU could choose from. Prints a line of
JSON for Triton's version, and one for each kernel.
"""

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import autotuner, driver, jit


class H100:
    """As much of a GPU's driver as a compiler asks for."""

    utils = None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_benchmarker(self) -> None:
        return None


def compile_instead_of_running() -> None:
    driver.set_active(H100())
    run = jit.JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **constants)
        print(json.dumps({"kernel": kernel.metadata.name, "shared_bytes": kernel.metadata.shared}), flush=True)
        return kernel

    def compile_all(self: Any, *args: Any, **constants: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in self.prune_configs(constants):
            self.fn.run(*args, **constants, **config.all_kwargs())

    jit.JITFunction.run = compile_only
    autotuner.Autotuner.run = compile_all


def attend(dtype: torch.dtype, width: int, *, causal: bool) -> None:
    from sortyard.ops import BucketSpec, make_segments
    from sortyard.ops.bucket_attention.groups import make_groups
    from sortyard.ops.bucket_attention.triton_backend.attend import tree_attention

    length = 9000  # so long that the topmost nodes are spread over programs
    spec = BucketSpec()
    (group,) = make_groups(make_segments(1, length, device="cpu"), spec, causal=causal, global_tokens=None)
    q, k, v = torch.zeros(3, 1, 2, length, width, dtype=dtype, requires_grad=True)
    tree_attention(q, k, v, spec, group=group, causal=causal).sum().backward()


def mix(dtype: torch.dtype, width: int) -> None:
    from sortyard.ops.expert_dispatch import Routing
    from sortyard.ops.grouped_mlp.triton_backend.experts import run_experts

    tokens, experts = 256, 8
    routing = Routing(
        experts=torch.arange(2 * tokens).view(tokens, 2) % experts,
        weights=torch.full((tokens, 2), 0.5, requires_grad=True),
        scores=torch.zeros(tokens, experts),
        loads=torch.full((experts,), 2.0 * tokens / experts),
        num_tokens=tokens,
    )
    x = torch.zeros(tokens, width, dtype=dtype, requires_grad=True)
    up, down = torch.zeros(experts, 2 * width, width, dtype=dtype), torch.zeros(experts, width, 2 * width, dtype=dtype)
    biases = torch.zeros(experts, 2 * width, dtype=dtype), torch.zeros(experts, width, dtype=dtype)
    operands = [tensor.requires_grad_() for tensor in (up, down, *biases)]
    out = run_experts(
        x, routing, up=operands[0], down=operands[1], up_bias=operands[2], down_bias=operands[3], activation="gelu",
        gated=False,
    )  # fmt: skip
    out.sum().backward()


if __name__ == "__main__":
    kind, name, size = sys.argv[1:]
    compile_instead_of_running()
    print(json.dumps({"triton": triton.__version__}))
    if kind == "experts":
        mix(getattr(torch, name), int(size))
    else:
        attend(getattr(torch, name), int(size), causal=kind == "causal")
