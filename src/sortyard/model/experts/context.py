"""What the gate sees of a token's surroundings: the context vector c_t."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sortyard.model.experts.options import ExpertOptions
from sortyard.model.experts.scan import segment_scan
from sortyard.ops.segments import Segments, restore_segments


@runtime_checkable
class Context(Protocol):
    """Gives every token a context vector, in float32 or better; zeros at padding."""

    def __call__(self, hidden: Float[Tensor, "B T D"], segments: Segments, /) -> Float[Tensor, "B T C"] | None:
        """Give every position its context; None where there is none."""


def make_context(options: ExpertOptions) -> Context:
    """Build the context a layer's options name.

    Args:
        options: the layer's settings.

    Returns:
        The context, a module.
    """
    if options.router == "token_hash" or options.context == "none":
        return NoContext()
    if options.context == "ema":
        return DecayedMean(options.ema_decay)
    if options.context == "running_mean":
        return RunningMean()
    return SequenceMean(shift=1 if options.context == "shuffled" else 0)


class NoContext(nn.Module):
    """No context: the gate sees the token alone."""

    def forward(self, hidden: Float[Tensor, "B T D"], segments: Segments) -> None:  # noqa: ARG002
        """Return nothing."""
        return


class SequenceMean(nn.Module):
    """Mean of the token's own sequence or, as a control, of the sequence `shift` further on in the batch.

    The control breaks the rule that batch neighbours never change a token, on purpose. In a batch of one sequence
    there is no other, and its context is zero.
    """

    def __init__(self, *, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, hidden: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B T D"]:
        """Average each sequence and hand the average to its tokens."""
        if segments.is_traced:
            return _call_operator(hidden, segments, "mean", self.shift)
        means = _sequence_means(hidden, segments)  # [S, D]
        if self.shift:
            means = means.roll(-self.shift, dims=0) if len(means) > 1 else torch.zeros_like(means)
        if segments.is_trivial:
            return means[:, None].expand(-1, segments.length, -1)
        return _spread(means.index_select(0, _sequence_of_token(segments)), segments)


class RunningMean(nn.Module):
    """Mean of the sequence's tokens up to and including this one: causal."""

    def forward(self, hidden: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B T D"]:
        """Average the past of each token."""
        if segments.is_traced:
            return _call_operator(hidden, segments, "running_mean")
        sums, positions = _scan_real(hidden, segments, decay=1.0)
        return _spread(sums / (positions + 1).to(sums.dtype)[:, None], segments)


class DecayedMean(nn.Module):
    """Exponential moving average over the sequence's past: causal.

    With decay a, s_t = a s_{t-1} + h_t and n_t = a n_{t-1} + 1 from zero, the context is s_t / n_t: a weighted mean
    from the first token on, without the pull towards zero of an average that starts there.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def forward(self, hidden: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B T D"]:
        """Average the past of each token, the nearer the more."""
        if segments.is_traced:
            return _call_operator(hidden, segments, "ema", self.decay)
        sums, positions = _scan_real(hidden, segments, decay=self.decay)
        norms = (1 - self.decay ** (positions + 1).to(sums.dtype)) / (1 - self.decay)
        return _spread(sums / norms[:, None], segments)


def _sequence_means(hidden: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "S D"]:
    precise = _precise(hidden)
    if segments.is_trivial:
        return precise.mean(dim=1)
    sums = precise.new_zeros(len(segments.counts), hidden.shape[2])
    sums = sums.index_add(0, _sequence_of_token(segments), _real(precise, segments))
    return sums / segments.counts.to(precise.dtype)[:, None]


def _scan_real(
    hidden: Float[Tensor, "B T D"], segments: Segments, *, decay: float
) -> tuple[Float[Tensor, "real D"], Tensor]:
    values = _real(_precise(hidden), segments)
    positions = segments.positions.flatten().index_select(0, segments.token_index)
    with torch.autocast(hidden.device.type, enabled=False):
        return segment_scan(values, ids=_sequence_of_token(segments), positions=positions, decay=decay), positions


def _precise(hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    return hidden if hidden.dtype == torch.float64 else hidden.float()


def _sequence_of_token(segments: Segments) -> Tensor:
    return segments.ids.flatten().index_select(0, segments.token_index)


def _real(values: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "real D"]:
    return values.flatten(0, 1).index_select(0, segments.token_index)


def _spread(values: Float[Tensor, "real D"], segments: Segments) -> Float[Tensor, "B T D"]:
    flat = values.new_zeros(segments.batch_size * segments.length, values.shape[1])
    return flat.index_copy(0, segments.token_index, values).view(segments.batch_size, segments.length, -1)


@torch.library.custom_op("sortyard::expert_context", mutates_args=())
def _context_operator(hidden: Tensor, ids: Tensor, positions: Tensor, kind: str, setting: float) -> Tensor:
    """Contexts [B, T, D], for traced graphs: whose sequences there are is known only when they run."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "mean": lambda: SequenceMean(shift=int(setting)),
        "running_mean": RunningMean,
        "ema": lambda: DecayedMean(setting),
    }
    context: Tensor = makers[kind]()(hidden, restore_segments(ids, positions))
    return context.contiguous().clone()


@_context_operator.register_fake
def _(hidden: Tensor, *_: Tensor | str | float) -> Tensor:
    return torch.empty_like(_precise(hidden), memory_format=torch.contiguous_format)


def _call_operator(hidden: Tensor, segments: Segments, kind: str, setting: float = 0.0) -> Tensor:
    context: Tensor = _context_operator(hidden, segments.ids, segments.positions, kind, float(setting))
    return context
