"""What `bench encoder` runs: sentences as short as SST-2's in several kinds of batches, and sequences of one length."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sortyard.evaluation.batching import TOKENS_PER_BATCH, plan_batches

SHORT, FIXED = "sst2", "fixed"
PADDED_TO = 128
# Tokens of SST-2's development sentences, special ones included: a gamma distribution of this mean and spread is near
# (measured with a WordPiece tokenizer: mean 25.2, standard deviation 10.4, longest 55).
_MEAN, _SPREAD, _SHORTEST, _LONGEST = 25.2, 10.4, 5, 60
_WINDOW = 1024  # sentences that are at hand to be sorted
_BATCH = 32
_WORDS = (1000, 30_000)  # ids that are drawn from


@dataclass(frozen=True)
class EncoderCase:
    """What one cell measures.

    Attributes:
        workload: `SHORT` or `FIXED`.
        length: Tokens of a sequence; of short sentences what they are padded to at most.
        dtype: "fp32" or "bf16".
        sentences: About how many of the window's sentences one call runs.
        positions: Tokens of the longest sequence of the whole benchmark.
        seed: Seed of weights, lengths and tokens.
        device: Where it runs.
    """

    workload: str
    length: int
    dtype: str
    sentences: int
    positions: int
    seed: int
    device: str

    @property
    def line(self) -> str:
        """What it has in common with the cases of other lengths."""
        return f"{self.dtype}/{self.workload}"

    @property
    def key(self) -> str:
        """The cell's name in a result."""
        return f"{self.line}/{self.length}"

    def at(self, length: int) -> Self:
        """Return the same at another length."""
        return replace(self, length=length)

    def fields(self) -> dict[str, Any]:
        """Return what the case is made from, as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Batches:
    """What one call runs.

    Attributes:
        inputs: The keyword arguments of each forward.
        real_tokens: Tokens without padding.
        all_tokens: Tokens with padding.
        sentences: Sequences.
    """

    inputs: tuple[dict[str, Tensor], ...]
    real_tokens: int
    all_tokens: int
    sentences: int


def short_lengths(seed: int) -> list[int]:
    """Draw a window of sentences' lengths."""
    shape = (_MEAN / _SPREAD) ** 2
    drawn = np.random.default_rng(seed).gamma(shape, _MEAN / shape, _WINDOW)
    return [int(n) for n in np.clip(np.round(drawn), _SHORTEST, _LONGEST)]


def make_batches(case: EncoderCase, batching: str) -> Batches:
    """Make what a call runs: of a window of sentences evenly spread batches, or one batch of equal sequences.

    Args:
        case: The case.
        batching: A key of `BATCHINGS`; without meaning where all sequences have one length.
    """
    generator = torch.Generator().manual_seed(case.seed)

    def words(*shape: int) -> Tensor:
        return torch.randint(*_WORDS, shape, generator=generator).to(case.device)

    if case.workload == FIXED:
        count = max(1, TOKENS_PER_BATCH["cpu"] // case.length)
        size = count * case.length
        return Batches(({"input_ids": words(count, case.length)},), size, size, count)
    lengths = short_lengths(case.seed)
    plans = BATCHINGS[batching](lengths)
    per_batch = len(lengths) / len(plans)
    chosen = _spread(plans, count=max(1, round(case.sentences / per_batch)))
    batches = [[lengths[i] for i in plan] for plan in chosen]
    if batching == "packed":
        inputs = [_packed(batch, words=words) for batch in batches]
    else:
        inputs = [
            _padded(batch, to=case.length if batching == "padded" else max(batch), words=words) for batch in batches
        ]
    return Batches(
        inputs=tuple(inputs),
        real_tokens=sum(map(sum, batches)),
        all_tokens=sum(one["input_ids"].numel() for one in inputs),
        sentences=sum(map(len, batches)),
    )


Plans = list[list[int]]


def _in_order(lengths: Sequence[int]) -> Plans:
    return [list(range(start, min(start + _BATCH, len(lengths)))) for start in range(0, len(lengths), _BATCH)]


def _sorted(lengths: Sequence[int]) -> Plans:
    return list(plan_batches(lengths, batch_size=_BATCH, tokens_per_batch=_BATCH * max(lengths)))


def _by_tokens(lengths: Sequence[int]) -> Plans:
    return list(plan_batches(lengths, batch_size=None, tokens_per_batch=TOKENS_PER_BATCH["cpu"]))


def _rows(lengths: Sequence[int]) -> Plans:
    """Fill rows one after another, in order."""
    rows: Plans = [[]]
    room = TOKENS_PER_BATCH["cpu"]
    for i, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = TOKENS_PER_BATCH["cpu"]
        rows[-1].append(i)
        room -= length
    return rows


BATCHINGS: dict[str, Callable[[Sequence[int]], Plans]] = {
    "padded": _in_order,
    "dynamic": _in_order,
    "sorted": _sorted,
    "tokens": _by_tokens,
    "packed": _rows,
}
BATCHING_NOTES = {
    "padded": f"batches of {_BATCH} in order, padded to {PADDED_TO}",
    "dynamic": f"batches of {_BATCH} in order, padded to their longest",
    "sorted": f"batches of {_BATCH} out of {_WINDOW:,} sorted by length",
    "tokens": f"batches of {TOKENS_PER_BATCH['cpu']:,} tokens out of {_WINDOW:,} sorted by length, as `predict` makes",
    "packed": f"rows of up to {TOKENS_PER_BATCH['cpu']:,} tokens, packed in order, without padding",
}


def _spread(plans: Plans, *, count: int) -> Plans:
    """Take so many plans, evenly spread from the first to the last."""
    count = min(count, len(plans))
    return [plans[int((i + 0.5) * len(plans) / count)] for i in range(count)]


def _padded(lengths: Sequence[int], *, to: int, words: Callable[..., Tensor]) -> dict[str, Tensor]:
    ids = words(len(lengths), to)
    real = torch.arange(to, device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
    return {"input_ids": ids * real, "attention_mask": real.long()}


def _packed(lengths: Sequence[int], *, words: Callable[..., Tensor]) -> dict[str, Tensor]:
    ids = words(1, sum(lengths))
    ends = torch.tensor([0, *lengths], device=ids.device).cumsum(0)
    return {"input_ids": ids, "cu_seqlens": ends}
