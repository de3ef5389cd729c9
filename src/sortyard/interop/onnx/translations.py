"""The operators of traced graphs in terms of ONNX: what torch.onnx.export asks for, by operator."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import OnnxFunction
from onnxscript import opset18 as op

import sortyard.model.experts.context
import sortyard.ops.bucket_attention
import sortyard.ops.grouped_mlp  # noqa: F401 - all three register the operators
from sortyard.interop.onnx import attention, context, descent, experts, tree
from sortyard.ops.bucket_attention.shapes import TreeShape, resolve_shape
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.lsh_tree import split_directions

Table = dict[Callable[..., Any], Callable[..., Any]]


def make_translations(longest: int) -> Table:
    """The operators' translations.

    Args:
        longest: tokens of the longest sequence; a longer one ends the graph with an error.

    Returns:
        A function for each operator.
    """

    def bucket_attention(
        q: Any, k: Any, v: Any, ids: Any, _positions: Any, _globals: Any, text: str, _causal: bool, _backend: Any
    ) -> Any:
        spec = BucketSpec(**json.loads(text))
        lengths, table = shape_table(spec, longest=longest)
        directions = split_directions(int(table[:, 0].max()), head_dim=q.shape[3], seed=spec.seed)
        return attention.attend(
            q,
            k,
            v,
            op.GreaterOrEqual(ids, _constant(0)),
            _constant(lengths),
            _constant(table),
            _constant(directions.numpy()),
            chunk=spec.query_chunk,
            half_width=spec.local_window,
            num_globals=spec.num_global_tokens,
            power_steps=spec.power_steps,
            by_queries=int(spec.split == "queries"),
            spread_coef=float(spec.score == "spread"),
        )

    return {
        torch.ops.sortyard.bucket_attention.default: bucket_attention,
        torch.ops.sortyard.expert_context.default: _expert_context,
        torch.ops.sortyard.expert_mlp.default: _expert_mlp,
    }


@lru_cache(maxsize=16)
def shape_table(spec: BucketSpec, *, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Which tree a sequence of each length has.

    Args:
        spec: the attention's settings.
        longest: tokens of the longest sequence.

    Returns:
        Rising lengths, and the levels, near leaves and beam of the trees from each of them on, levels 0 where it is
        dense. The last length is the first one that is too long, for which there is no tree.
    """
    lengths, rows = [0], [(0, 0, 0)]
    for length in range(1, longest + 1):
        shape = resolve_shape(spec, length, False)
        row = (shape.levels, shape.near, shape.beam) if isinstance(shape, TreeShape) else (0, 0, 0)
        if row != rows[-1]:
            lengths.append(length)
            rows.append(row)
    return np.array([*lengths, longest + 1]), np.array(rows)


def local_functions() -> list[ir.Function]:
    """All functions that the translations call, also those that torch does not see called."""
    homes = (tree, descent, attention, experts, context)
    found = {value.name: value for home in homes for value in vars(home).values() if isinstance(value, OnnxFunction)}
    functions = [ir.serde.deserialize_function(function.to_function_proto()) for function in found.values()]
    for function in functions:
        function.opset_imports[tree.DOMAIN.domain] = tree.DOMAIN.version  # for calls within loops, which are missed
    return functions


def _expert_context(hidden: Any, ids: Any, positions: Any, kind: str, setting: float) -> Any:
    if kind == "ema":
        return context.decayed_context(hidden, ids, positions, decay=setting)
    if kind == "running_mean":
        return context.running_mean_context(hidden, ids, positions)
    return context.shuffled_context(hidden, ids) if setting else context.mean_context(hidden, ids)


def _expert_mlp(
    x: Any,
    chosen: Any,
    weights: Any,
    up: Any,
    down: Any,
    up_bias: Any,
    down_bias: Any,
    activation: str,
    gated: bool,
    _kept_rows: int | None,
) -> tuple[Any, Any]:
    borders, copies, ranks = experts.sort_copies(chosen, up)
    inner = experts.multiply_groups(experts.copy_tokens(x, copies, chosen), borders, up)
    if up_bias is not None:
        inner = experts.add_bias(inner, up_bias, copies, chosen)
    activate = experts.ACTIVATIONS[activation]
    if gated:
        gate, value = op.Split(inner, num_outputs=2, axis=1)
        inner = op.Mul(activate(gate), value)
    else:
        inner = activate(inner)
    outputs = experts.multiply_groups(inner, borders, down)
    if down_bias is not None:
        outputs = experts.add_bias(outputs, down_bias, copies, chosen)
    kept = op.ConstantOfShape(_constant(np.array([0, up.shape[1]])))  # for a backward pass: nothing here
    return experts.combine_copies(outputs, ranks, weights), kept


def _constant(value: np.ndarray | int) -> Any:
    return op.Constant(value=ir.tensor(np.asarray(value)))
