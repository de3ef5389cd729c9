"""The kernels as torch functions: a tree's choice, and attention with its gradient."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from sortyard.ops.bucket_attention.compiled.library import load_library
from sortyard.ops.bucket_attention.compiled.problem import Problem, make_problem, restore_problem
from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree import tree_attention
from sortyard.ops.lsh_tree.build import split_directions

_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_VECTOR_BYTES = 64


@dataclass(frozen=True)
class Chosen:
    """What a group's trees and chunks decided, as the kernels read it.

    Args:
        order: Position of each key in the order of the leaves; nothing if the leaves are blocks of positions.
        leaf_of: Leaf of each position; likewise.
        near: Leaves that a chunk reads exactly, rising; -1 = none.
        far: Nodes that a chunk summarises, each at its place's height; -1 = none.
        means: Mean key (and value) of every node, widths padded to whole vectors.
    """

    order: Int[Tensor, "S H n"]
    leaf_of: Int[Tensor, "S H n"]
    near: Int[Tensor, "S H C near"]
    far: Int[Tensor, "S H C far"]
    means: Float[Tensor, "S H nodes parts padded"]


def compiled_tree_attention(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    spec: BucketSpec,
    *,
    group: Group,
    causal: bool,
    dropout_p: float,
) -> Float[Tensor, "S H n K"]:
    """Bucket attention of a group of sequences by their trees; zeros at pads.

    Args:
        q: Queries on a CPU.
        k: Keys.
        v: Values.
        spec: The attention's settings.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.
        dropout_p: Probability of dropping a weight; above 0 plain torch computes, as the kernels drop none.

    Returns:
        One output a query.
    """
    if dropout_p > 0:
        return tree_attention(q, k, v, spec, group=group, causal=causal, dropout_p=dropout_p)
    problem = make_problem(q, spec, group=group, causal=causal)
    if q.dtype == torch.float16:  # the kernels read no halves
        q, k, v = q.float(), k.float(), v.float()
        return _attend(q, k, v, spec, problem).to(torch.float16)
    return _attend(q, k, v, spec, problem)


@torch.no_grad()
def choose_nodes(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"] | None,
    *,
    seed: int,
    problem: Problem,
) -> Chosen:
    """Build the trees, take the nodes' means and let every chunk of queries choose.

    Args:
        q: Queries on a CPU.
        k: Keys.
        v: Values; their means are left out without them.
        seed: Seed of the directions that trees split along.
        problem: The call's shape.

    Returns:
        The choice.
    """
    library, numbers, name = load_library(), problem.numbers, _NAMES[q.dtype]
    q, k = _rows(q), _rows(k)
    S, H, n, K = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    causal = bool(numbers["causal"])
    # Devices are named: a default device that the user has set must not come between.
    order, leaf_of = (torch.zeros(S, H, 0 if causal else n, dtype=torch.int32, device="cpu") for _ in range(2))
    near, far = (q.new_empty(S, H, numbers["chunks"], numbers[x], dtype=torch.int32) for x in ("near", "far"))
    lanes = _VECTOR_BYTES // wide.itemsize
    parts = 1 if v is None else 2
    means = q.new_empty(S, H, problem.num_nodes(), parts, -(-K // lanes) * lanes, dtype=wide)
    spreads = means.new_empty(S, H, problem.num_nodes() if numbers["by_spread"] else 0)
    shape = ctypes.byref(problem.to_c())
    if not causal:
        directions = split_directions(numbers["levels"], head_dim=K, seed=seed).to(wide)
        library[f"sortyard_tree_{name}"](shape, *_view(q), *_view(k), *_pointers(directions, order, leaf_of))
    values = (None, None) if v is None else _view(v)
    library[f"sortyard_means_{name}"](shape, *_view(k), *values, *_pointers(order, leaf_of, means, spreads))
    library[f"sortyard_descend_{name}"](
        shape, *_view(q), *_pointers(means, spreads), ctypes.c_int64(parts), *_pointers(near, far)
    )
    return Chosen(order, leaf_of, near, far, means)


def _attend(q: Tensor, k: Tensor, v: Tensor, spec: BucketSpec, problem: Problem) -> Tensor:
    out: Tensor = _TreeAttention.apply(q, k, v, spec, problem)  # type: ignore[no-untyped-call]
    return out


@torch.library.custom_op("sortyard::tree_attention", mutates_args=())
def tree_attention_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    far_heights: Tensor,
    globals_at: Tensor,
    numbers: Sequence[int],
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs, the logs of the softmax's sums, and the choice in the order of `Chosen`.

    One operator, so that selective activation checkpointing can keep its results: it sees no call of a library.
    """
    problem = restore_problem(numbers, lengths, far_heights, globals_at)
    chosen = choose_nodes(q, k, v, seed=seed, problem=problem)
    out, lse = _like(q), chosen.means.new_empty(q.shape[:3])
    choice = (chosen.order, chosen.leaf_of, chosen.near, chosen.far, chosen.means)
    load_library()[f"sortyard_attend_{_NAMES[q.dtype]}"](
        ctypes.byref(problem.to_c()),
        *(part for x in (q, k, v) for part in _view(x)),
        *_pointers(*choice),
        *_view(out),
        *_pointers(lse),
    )
    return out, lse, *choice


class _TreeAttention(torch.autograd.Function):
    """Saves the inputs, the choice and each query's log of the softmax's sum; the backward computes the rest again."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, spec: BucketSpec, problem: Problem) -> Tensor:
        q, k, v = _rows(q), _rows(k), _rows(v)
        out, lse, *choice = tree_attention_operator(q, k, v, *problem.tensors(), problem.ordered(), spec.seed)
        ctx.save_for_backward(q, k, v, lse, *choice)
        ctx.problem = problem  # type: ignore[attr-defined]
        found: Tensor = out
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, lse, *choice = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = _rows(grads[0])
        slopes = [_like(x) for x in (q, k, v)]
        load_library()[f"sortyard_attend_backward_{_NAMES[q.dtype]}"](
            ctypes.byref(ctx.problem.to_c()),  # type: ignore[attr-defined]
            *(part for x in (q, k, v) for part in _view(x)),
            *_pointers(*choice),
            *_view(grad),
            *_pointers(lse),
            *(part for x in slopes for part in _view(x)),
        )
        return *slopes, None, None


def _rows(x: Tensor) -> Tensor:
    """A view or copy whose rows lie in one piece, which is all that the kernels ask of a layout."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _like(x: Tensor) -> Tensor:
    """New memory in the same layout if its rows lie in one piece there, too."""
    found = torch.empty_like(x)
    return found if found.stride(-1) == 1 else x.new_empty(x.shape)


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(x.data_ptr()) for x in tensors]


def _view(x: Float[Tensor, "S H n K"]) -> tuple[ctypes.c_void_p, ctypes.Array[ctypes.c_int64]]:
    """A tensor's memory and the strides of its first three dimensions."""
    return ctypes.c_void_p(x.data_ptr()), (ctypes.c_int64 * 3)(*x.stride()[:3])
