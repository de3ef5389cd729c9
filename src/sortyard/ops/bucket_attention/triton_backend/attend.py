"""Tree attention as one autograd function: choose, attend, and recompute in the backward pass."""

import math
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.triton_backend.attention_kernels import attend_backward, attend_forward
from sortyard.ops.bucket_attention.triton_backend.mean_kernels import spread_gradients
from sortyard.ops.bucket_attention.triton_backend.problem import Problem, make_problem
from sortyard.ops.bucket_attention.triton_backend.row_kernels import INTERPRETED
from sortyard.ops.bucket_attention.triton_backend.tree import BLOCKING, Sorted, descend, sort_keys, sum_tree

_MOST_BYTES = 128  # of a column of a tile of queries
_MOST_PAIRS = 65_535  # that a grid takes along its second and third axis


def tree_attention(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    spec: BucketSpec,
    *,
    group: Group,
    causal: bool,
) -> Float[Tensor, "S H n K"]:
    """Bucket attention of a group of sequences by their trees; places at pads are zero.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        spec: The attention's settings.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        One output a query.
    """
    S, H, n, K = q.shape
    step = max(1, _MOST_PAIRS // H)
    if step < S:
        outputs = []
        for rows in (slice(first, first + step) for first in range(0, S, step)):
            # All that launches read of a group.
            part = replace(group, real=group.real[rows], globals_at=group.globals_at[rows])
            outputs.append(tree_attention(q[rows], k[rows], v[rows], spec, group=part, causal=causal))
        return torch.cat(outputs)
    problem = make_problem((S, H, n, K), spec, dtype=q.dtype, device=q.device, group=group, causal=causal)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        out: Tensor = _TreeAttention.apply(q, k, v, problem)  # type: ignore[no-untyped-call]
    return out


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
        tree = sum_tree(k, v, sort_keys(q, k, problem), problem, needs_spreads=problem.adds_spread)
        choice = descend(q, tree, problem)
        out = torch.empty_like(q, dtype=problem.stored)
        lse = torch.empty(q.shape[:3], dtype=problem.wide, device=q.device)
        _launch_forward(q, k, v, tree, choice, out, lse, problem)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse, tree.order, choice)
        ctx.problem = problem
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse, order, choice = ctx.saved_tensors
        problem: Problem = ctx.problem
        with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
            tree = sum_tree(k, v, order, problem, needs_spreads=False)
            out_grad = out_grad if out_grad.stride(-1) == 1 else out_grad.contiguous()
            q_grad = torch.empty_like(q, dtype=problem.stored)
            S, H, n, K = problem.shape
            grads = torch.zeros(2, S, H, n + problem.plan.num_nodes, K, dtype=problem.wide, device=q.device)
            _launch_backward(q, k, v, tree, choice, out, lse, out_grad, q_grad, grads, problem)
            k_grad, v_grad = _spread(grads, k, v, order, problem)
        return q_grad.to(q.dtype), k_grad.to(k.dtype), v_grad.to(v.dtype), None


def _sizes(problem: Problem) -> tuple[int, ...]:
    """The arguments that both attention kernels take between `chunk` and `local_window`."""
    spec, plan = problem.spec, problem.plan
    tiles = triton.cdiv(spec.query_chunk, _rows(problem))
    return (
        spec.query_chunk, tiles, plan.near, plan.far, problem.globals_at.shape[1], plan.width, plan.levels, plan.width,
        plan.num_nodes, spec.local_window,
    )  # fmt: skip


def _rows(problem: Problem) -> int:
    """Queries of a tile; fewer where the operands of products fill more registers."""
    most = _MOST_BYTES // problem.dtype.itemsize
    return int(min(most, max(16, triton.next_power_of_2(problem.spec.query_chunk))))


def _constants(problem: Problem) -> dict[str, Any]:
    constants = {
        "ROWS": _rows(problem), "CAUSAL": problem.causal, "K": problem.shape[3], "KP": problem.width,
        "DOT": problem.product_type, "WIDE": problem.wide_type,
    }  # fmt: skip
    return {**constants, "COLUMNS": 32} if INTERPRETED else constants


def _grid(problem: Problem) -> tuple[int, int]:
    return problem.chunks * triton.cdiv(problem.spec.query_chunk, _rows(problem)), problem.pairs


def _launch_forward(
    q: Tensor, k: Tensor, v: Tensor, tree: Sorted, choice: Tensor, out: Tensor, lse: Tensor, problem: Problem
) -> None:
    _, H, n, K = problem.shape
    _FORWARD[_grid(problem)](
        q, k, v, tree.key_means, tree.value_means, tree.order, tree.leaf_of, choice, problem.far_heights,
        problem.globals_at, problem.lengths, problem.table, out, lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        n, H, *_sizes(problem), K**-0.5 / math.log(2), **_constants(problem),
    )  # fmt: skip


def _launch_backward(
    q: Tensor, k: Tensor, v: Tensor, tree: Sorted, choice: Tensor, out: Tensor, lse: Tensor, out_grad: Tensor,
    q_grad: Tensor, grads: Tensor, problem: Problem,
) -> None:  # fmt: skip
    _, H, n, K = problem.shape
    _BACKWARD[_grid(problem)](
        q, k, v, tree.key_means, tree.value_means, tree.order, tree.leaf_of, choice, problem.far_heights,
        problem.globals_at, problem.lengths, problem.table, out, lse, out_grad, q_grad, grads,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *out_grad.stride()[:3],
        *q_grad.stride()[:3], n, H, problem.pairs, *_sizes(problem), K**-0.5, K**-0.5 / math.log(2),
        **_constants(problem),
    )  # fmt: skip


def _spread(grads: Tensor, k: Tensor, v: Tensor, order: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values; zeros at pads, which no leaf holds."""
    _, H, n, K = problem.shape
    plan = problem.plan
    k_grad, v_grad = (torch.zeros_like(x, dtype=problem.stored) for x in (k, v))
    leaves = triton.cdiv(n, plan.width) if problem.causal else plan.nodes[0]
    spread_gradients[(triton.cdiv(leaves, BLOCKING.leaves), problem.pairs, 2)](
        grads, order, problem.lengths, problem.table, k_grad, v_grad, *k_grad.stride()[:3], *v_grad.stride()[:3],
        n, H, problem.pairs, plan.levels, plan.width, plan.width, plan.heights, plan.num_nodes,
        LEAVES=BLOCKING.leaves, SLOTS=min(16, triton.next_power_of_2(plan.width)), CAUSAL=problem.causal,
        K=K, KP=problem.width, num_warps=8,
    )  # fmt: skip
    return k_grad, v_grad


def _tuned(kernel: Any, configs: list[tuple[int, int, int | None]], written: list[str]) -> Any:
    """Let a GPU pick columns, warps and registers by head width, dtype and depth; the interpreter has one way."""
    if INTERPRETED:
        return kernel
    choices = [
        triton.Config({"COLUMNS": columns}, num_warps=warps, num_stages=2, maxnreg=registers)
        for columns, warps, registers in configs
    ]
    tuned = triton.autotune(
        choices,
        key=["KP", "ROWS", "CAUSAL", "levels"],
        reset_to_zero=written,
        prune_configs_by={"early_config_prune": _left},
    )
    return tuned(kernel)


def _left(configs: list[triton.Config], named: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """Configurations to choose from, without those that would be compiled in vain.

    An H100 took the fewer registers for both kernels, bidirectional, at 16,384, 65,536 and 131,072 keys of width 64 in
    bfloat16. In float64 Triton 3.6 compiles one only, and that for tiles of 16 queries; 3.9 would take all.
    """
    given = named | constants
    if given["DOT"] == tl.float64:
        return [config for config in configs if config.num_warps == 8 and config.kwargs["COLUMNS"] == 32]
    if given["DOT"] == tl.bfloat16 and given["KP"] == 64 and not given["CAUSAL"]:
        return [config for config in configs if config.maxnreg is not None]
    return configs


# Fewer registers let a third program live on a multiprocessor, which hides more of the gathers' latency.
_FORWARD = _tuned(attend_forward, [(32, 4, None), (32, 4, 168), (32, 8, None), (64, 8, None)], [])
_BACKWARD = _tuned(attend_backward, [(32, 4, None), (32, 4, 168), (32, 8, None)], ["grads"])
