"""Which settings make a selection as sparse as asked, measured on what the model's layers really see."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sortyard.ops import expected_sparsity
from sortyard.studies.bench.fidelity_selections import LOCAL, RANDOM
from sortyard.studies.sparsity.cores import ROUNDS, TREE, Setting, attention_layers, base_spec, layer_sparsity

Projections = Sequence[tuple[Tensor, Tensor]]
"""Queries and keys [1, H, T, K] of each layer, one sequence."""

# Window, bucket size and least beam of trees, from wide to narrow: where few keys are left, none of these may take all.
_FRAMES = (
    (16, 16, 8), (12, 16, 6), (8, 16, 4), (8, 8, 4), (6, 8, 2), (4, 8, 2), (4, 8, 1), (3, 8, 1), (2, 8, 1), (1, 8, 1),
    (0, 8, 1), (0, 4, 1),
)  # fmt: skip
_LEAST_WINDOW = 4  # what stands close by matters most to a masked token: a second near bucket must not cost that
_HEADS_LOOKED_AT = 2
_WINDOW_SHARE, _WIDEST = 8, 16


@torch.no_grad()
def capture_projections(model: Any, ids: Int[Tensor, "1 T"]) -> list[tuple[Tensor, Tensor]]:
    """Run a model over one sequence and keep each layer's queries and keys of a few heads, on the CPU."""
    found: list[tuple[Tensor, Tensor]] = []

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden"]
        q, k, _ = module.projections(hidden, kwargs["positions"])
        heads = [(len(found) * _HEADS_LOOKED_AT + n) % q.shape[1] for n in range(min(_HEADS_LOOKED_AT, q.shape[1]))]
        found.append((q[:, heads].cpu(), k[:, heads].cpu()))

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in attention_layers(model)]
    model.eval()
    try:
        model(input_ids=ids.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def measured_sparsity(setting: Setting, projections: Projections) -> float:
    """Mean over layers of the share of pairs left out."""
    values = [layer_sparsity(setting, q, k, layer=layer) for layer, (q, k) in enumerate(projections)]
    return sum(values) / len(values)


def find_setting(selection: str, sparsity: float, *, projections: Projections) -> tuple[Setting, float]:
    """Find the settings with which a selection leaves out about a share of the pairs.

    The result is the least sparse that is at least as sparse as asked, where there is one; else the sparsest there is,
    as when a window and the summaries alone are more keys than a short sequence allows.

    Args:
        selection: A key of `SELECTIONS`.
        sparsity: The share asked for, above 0 and below 1.
        projections: Queries and keys to measure on.

    Returns:
        The setting, and its measured sparsity.
    """
    length = projections[0][0].shape[2]
    keys = max(1, round(length * (1 - sparsity)))

    def measure(setting: Setting) -> float:
        return measured_sparsity(setting, projections)

    if selection in (RANDOM, LOCAL):
        return _masked(selection, sparsity, length=length, measure=measure)
    if selection == ROUNDS:
        window = min(_WIDEST, keys // _WINDOW_SHARE)
        spec = base_spec(ROUNDS, local_window=window)
        return _largest(
            lambda size: Setting(ROUNDS, replace(spec, bucket_size=size)), most=length // 2, least=sparsity,
            measure=measure,
        )  # fmt: skip
    return _tree(selection, sparsity, length=length, measure=measure)


def _masked(
    selection: str, sparsity: float, *, length: int, measure: Callable[[Setting], float]
) -> tuple[Setting, float]:
    # Both ends are read by all besides, so the smallest budget is 4 keys: 3 of a window or 2 at random.
    return _largest(lambda count: Setting(selection, keys=count + 3), most=length - 3, least=sparsity, measure=measure)


def _tree(
    selection: str, sparsity: float, *, length: int, measure: Callable[[Setting], float]
) -> tuple[Setting, float]:
    """Near buckets first, then the window, which is the finer measure."""
    window, size, beam = _frame(sparsity, length=length)
    spec = base_spec(selection, local_window=window, bucket_size=size)
    leaves = 2 ** max(0, (-(-length // size) - 1).bit_length())

    def with_near(near: int) -> Setting:
        return Setting(selection, replace(spec, near_buckets=near, beam=max(beam, near)))

    best, reached = _largest(with_near, most=leaves - 1, least=sparsity, measure=measure)
    chosen = best.spec
    if chosen is None or reached < sparsity:
        return best, reached

    def with_window(more: int) -> Setting:
        return Setting(selection, replace(chosen, local_window=window + more - 1))

    return _largest(with_window, most=size + 1, least=sparsity, measure=measure)


def _frame(sparsity: float, *, length: int) -> tuple[int, int, int]:
    """The widest frame that leaves room for two near buckets, else for one, counted without looking at a tensor."""
    wide = [(frame, 2) for frame in _FRAMES if frame[0] >= _LEAST_WINDOW]
    for frame, near in (*wide, *((frame, 1) for frame in _FRAMES)):
        if _expected(frame, near=near, length=length) >= sparsity:
            return frame
    return max(_FRAMES, key=lambda frame: _expected(frame, near=1, length=length))


def _expected(frame: tuple[int, int, int], *, near: int, length: int) -> float:
    window, size, beam = frame
    spec = base_spec(TREE, local_window=window, bucket_size=size, near_buckets=near, beam=max(near, beam))
    return expected_sparsity(spec, length, causal=False)


def _largest(
    make: Callable[[int], Setting], *, most: int, least: float, measure: Callable[[Setting], float]
) -> tuple[Setting, float]:
    """The largest number, at least 1, whose setting is at least that sparse; 1 where none is."""
    low, high = 1, max(1, most)
    found: dict[int, float] = {}
    while low < high:
        middle = (low + high + 1) // 2
        found[middle] = measure(make(middle))
        if found[middle] >= least:
            low = middle
        else:
            high = middle - 1
    if low not in found:
        found[low] = measure(make(low))
    return make(low), found[low]
