"""The two passes over a plan's parts, a block of chunks at a time, so that what a block gathers stays in the cache."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.ops.bucket_attention.round_parts import FAR, RoundsPlan

# Logits of a block: enough for a product to be worth its call, few enough for its operands to stay in the cache.
_BLOCK_LOGITS = 1 << 17
# Logits are kept in base 2: exp2 runs on vectors, while exp may go through a library that is tenfold slower at -FAR.
_LOG2_E = 1.0 / math.log(2.0)
# A running maximum starts here: above what left-out pairs have, below every logit.
_FLOOR = -FAR / 10
# Below every sum of exponentials that has a term of 1.
_LEAST = 1e-30


@dataclass(frozen=True)
class Dropout:
    """Which weights to drop, the same ones in both passes.

    Args:
        p: Probability of dropping a weight, in (0, 1).
        seed: Seed of the draws.
    """

    p: float
    seed: int

    def factors(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """0 for a dropped weight and 1 / (1 - p) for the others."""
        return torch.empty_like(like).bernoulli_(1.0 - self.p, generator=generator).div_(1.0 - self.p)


@dataclass(frozen=True)
class _Block:
    """Some chunks of a part.

    Args:
        queries: Row of each query in a table of S * H * n rows; one behind the last at empty places.
        keys: Row of each key.
        bias: What is added to the logits.
    """

    queries: Int[Tensor, " query_rows"]
    keys: Int[Tensor, " key_rows"]
    bias: Float[Tensor, "chunks c X"]


def attend_parts(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    plan: RoundsPlan,
    *,
    dropout: Dropout | None,
) -> tuple[Float[Tensor, "S H n K"], Float[Tensor, "S H n"]]:
    """Softmax attention over all parts by a running maximum and sum.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        plan: The parts.
        dropout: Which weights to drop.

    Returns:
        The output, and the binary logarithm of each query's sum of exponentials: infinite where it has no key.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    tables = tuple(_table(x) for x in (q, k, v))
    N, K = tables[0].shape  # one row more takes what is computed for empty places
    mixed = torch.zeros(N + 1, K, dtype=wide, device=q.device)
    top, total = (torch.full((N + 1,), x, dtype=wide, device=q.device) for x in (_FLOOR, 0.0))
    generator = torch.Generator(q.device).manual_seed(0 if dropout is None else dropout.seed)
    for block in _blocks(plan, wide):
        query, key, value = _gather(tables, block)
        logits = block.bias.baddbmm_(query, key.mT, alpha=K**-0.5 * _LOG2_E)
        rows, old = block.queries, top[block.queries]
        new = torch.maximum(old, logits.amax(-1).flatten())
        weights = logits.sub_(new.view(*logits.shape[:2], 1)).exp2_()
        fade = (old - new).exp2_()
        top.index_copy_(0, rows, new)
        total.index_copy_(0, rows, total[rows].mul_(fade).add_(weights.sum(-1).flatten()))
        if dropout is not None:
            weights.mul_(dropout.factors(weights, generator))
        before = mixed.index_select(0, rows).mul_(fade[:, None]).view_as(query)
        mixed.index_copy_(0, rows, before.baddbmm_(weights, value).flatten(0, 1))
    lse = torch.where(total > 0, top + total.clamp_min(_LEAST).log2(), torch.inf)
    out = mixed.div_(total.clamp_min_(_LEAST)[:, None])[:N].to(q.dtype)
    return out.view(q.shape), lse[:N].view(q.shape[:3])


def differentiate_parts(
    grad: Float[Tensor, "S H n K"],
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    plan: RoundsPlan,
    *,
    out: Float[Tensor, "S H n K"],
    lse: Float[Tensor, "S H n"],
    dropout: Dropout | None,
) -> tuple[Float[Tensor, "S H n K"], Float[Tensor, "S H n K"], Float[Tensor, "S H n K"]]:
    """The gradients with respect to queries, keys and values, each part weighted by the softmax over all parts.

    Args:
        grad: Gradient of the output.
        q: Queries.
        k: Keys.
        v: Values.
        plan: The parts.
        out: The output.
        lse: The binary logarithm of the sums of exponentials.
        dropout: Which weights were dropped.

    Returns:
        Gradients of q, k and v.
    """
    tables = tuple(_table(x) for x in (q, k, v, grad))
    N, K = tables[0].shape
    dq, dk, dv = (torch.zeros(N, K, dtype=lse.dtype, device=q.device) for _ in range(3))
    mean = torch.linalg.vecdot(grad.to(lse.dtype), out.to(lse.dtype)).flatten()
    lse = torch.cat([lse.flatten(), lse.new_full((1,), torch.inf)])
    generator = torch.Generator(q.device).manual_seed(0 if dropout is None else dropout.seed)
    for block in _blocks(plan, lse.dtype):
        query, key, value, upper = _gather(tables, block)
        logits = block.bias.baddbmm_(query, key.mT, alpha=K**-0.5 * _LOG2_E)
        weights = logits.sub_(lse[block.queries].view(*logits.shape[:2], 1)).exp2_()
        slope, used = upper @ value.mT, weights
        if dropout is not None:
            factors = dropout.factors(weights, generator)
            slope, used = slope.mul_(factors), weights * factors
        dv.index_add_(0, block.keys, (used.mT @ upper).flatten(0, 1))
        rows = block.queries.clamp_max(N - 1)  # empty places add zeros
        slope.sub_(mean[rows].view(*logits.shape[:2], 1)).mul_(weights)
        dq.index_add_(0, rows, (slope @ key).flatten(0, 1))
        dk.index_add_(0, block.keys, (slope.mT @ query).flatten(0, 1))
    dq, dk = dq.mul_(K**-0.5), dk.mul_(K**-0.5)
    return dq.to(q.dtype).view(q.shape), dk.to(q.dtype).view(q.shape), dv.to(q.dtype).view(q.shape)


def _table(x: Float[Tensor, "S H n K"]) -> Float[Tensor, "rows K"]:
    return x.reshape(-1, x.shape[-1])


def _blocks(plan: RoundsPlan, dtype: torch.dtype) -> Iterator[_Block]:
    """The blocks of all parts in a fixed order."""
    for part in plan.parts(dtype):
        S, H, C, c = part.queries.shape
        n, X = plan.group.length, part.keys.shape[-1]
        queries, keys = part.queries.flatten(0, 2), part.keys.flatten(0, 2)
        base = torch.arange(S * H, device=keys.device).repeat_interleave(C)[:, None] * n
        step = max(1, _BLOCK_LOGITS // (c * X))
        for start in range(0, len(queries), step):
            chunks = slice(start, start + step)
            rows = torch.where(queries[chunks] < n, queries[chunks] + base[chunks], S * H * n)
            yield _Block(rows.flatten(), (keys[chunks] + base[chunks]).flatten(), part.bias(chunks))


def _gather(tables: tuple[Tensor, ...], block: _Block) -> list[Tensor]:
    """A block's queries, keys, values and, where given, gradients of outputs, in the bias's precision."""
    chunks, c, X = block.bias.shape
    queries = block.queries.clamp_max(len(tables[0]) - 1)
    indices, sizes = (queries, block.keys, block.keys, queries), (c, X, X, c)
    return [
        table.index_select(0, index).to(block.bias.dtype).view(chunks, size, -1)
        for table, index, size in zip(tables, indices, sizes, strict=False)
    ]
