"""Tensor parallelism of a model that is trained: processes share every layer's width.

The cuts are those of the model's plan (`sortyard.model.parallel_plan`). Here they are plain tensors, because what
follows the projections (hashing, sorting, dispatch) works on local heads and local inner widths, and because the
residual lines can be cut along the tokens, too, which transformers' own styles do not do.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sortyard.ops.expert_dispatch import Routing
from sortyard.parallel import EXPERTS, PACKED_BIAS
from sortyard.parallel.collectives import (
    Group,
    add_up,
    add_up_tokens,
    cut_tokens,
    hand_out,
    hand_out_tokens,
    join_tokens,
)
from sortyard.parallel.placement import Placement, Span, even_span

IGNORED = -100
Mix = Callable[[Tensor, Routing], Tensor]
_ROWS, _COLUMNS = -2, -1
_CUTS = {  # rule: the dim of a weight, whether two halves are cut alike, the dim of its bias
    "colwise": (_ROWS, False, _COLUMNS),
    "colwise_gather_output": (_ROWS, False, _COLUMNS),
    "embedding_rowwise": (_ROWS, False, None),
    "rowwise": (_COLUMNS, False, None),
    "packed_colwise": (_ROWS, True, None),
    "packed_rowwise": (_COLUMNS, True, None),
    PACKED_BIAS: (_COLUMNS, True, None),
}


def cut_by_plan(model: Any, *, group: Group, placements: dict[str, Placement]) -> None:
    """Leave each process its slice of every tensor that the plan names.

    Args:
        model: a whole head of sortyard.model, or a part of one.
        group: the processes that share it.
        placements: by the parameters' names; updated.
    """
    rules = {name: rule for name, rule in model.tp_plan.items() if rule != EXPERTS}
    done: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            name = f"{prefix}.{leaf}" if prefix else leaf
            cut = _cut_of(name, rules)
            if cut is None:
                continue
            if id(parameter) not in done:
                dim, halves = cut
                spans = _spans(parameter.shape[dim], group, halves=halves)
                parts = [parameter.detach().narrow(dim, start, stop - start) for start, stop in spans]
                done[id(parameter)] = nn.Parameter(torch.cat(parts, dim).clone(), requires_grad=parameter.requires_grad)
                placements[name] = replace(placements[name].cut(dim, spans), by_tensor_parallelism=True)
            setattr(module, leaf, done[id(parameter)])


def share_layers(model: Any, *, group: Group, by_tokens: bool) -> list[str]:
    """Make the layers of a cut model add up to what the whole one computes.

    Args:
        model: what `cut_by_plan` cut.
        group: the processes that share it.
        by_tokens: keep the residual lines, norms and dropout cut along the tokens.

    Returns:
        Names of the parameters whose gradients are parts that must still be added up over the group.
    """
    enter, leave = (hand_out_tokens, add_up_tokens) if by_tokens else (hand_out, add_up)
    encoder = model.base_model.encoder
    if by_tokens:
        _wrap(encoder, before=partial(_cut_evenly, group=group), after=lambda out: (join_tokens(out[0], group), out[1]))
    for block in encoder.layers:
        _wrap(block.attention, before=partial(enter, group=group))
        _share_rowwise(block.attention.o_proj, partial(leave, group=group))
        if block.is_routed:
            _share_experts(block.ffn, group, by_tokens=by_tokens)
        for dense in [block.ffn] * (not block.is_routed) + [block.shared_ffn] * (block.shared_ffn is not None):
            _wrap(dense, before=partial(enter, group=group))
            _share_rowwise(dense.down_proj, partial(leave, group=group))
    _share_vocabulary(model, group)
    return list(_seen_by_tokens(model)) if by_tokens else []


def _cut_of(name: str, rules: dict[str, str]) -> tuple[int, bool] | None:
    """The dim a parameter is cut along, and whether it holds two halves that are cut alike."""
    general = ".".join("*" if part.isdigit() else part for part in name.split("."))
    module, _, leaf = general.rpartition(".")
    rule = rules.get(general)
    if rule is not None:
        return _CUTS[rule][:2]
    rule = rules.get(module)
    if rule is None:
        return None
    dim, halves, bias_dim = _CUTS[rule]
    if leaf == "bias":
        return None if bias_dim is None else (bias_dim, halves)
    return dim, halves


def _spans(length: int, group: Group, *, halves: bool) -> tuple[Span, ...]:
    parts = 2 if halves else 1
    start, stop = even_span(length // parts, group.size(), group.rank())
    return tuple((half * length // parts + start, half * length // parts + stop) for half in range(parts))


def _wrap(
    module: nn.Module,
    *,
    before: Callable[[Tensor], Tensor] = lambda hidden: hidden,
    after: Callable[[Any], Any] = lambda out: out,
) -> None:
    """Change what goes into a module's forward as its first argument, and what comes out."""
    inner = module.forward
    module.forward = lambda hidden, *args, **kwargs: after(inner(before(hidden), *args, **kwargs))


def _cut_evenly(hidden: Tensor, group: Group) -> Tensor:
    if hidden.shape[1] % group.size():
        raise ValueError(
            f"sequence_parallel cuts {hidden.shape[1]} tokens over {group.size()} processes, which does not come out "
            "even; change sequence_length, or turn it off"
        )
    return cut_tokens(hidden, group)


def _share_rowwise(linear: nn.Linear, leave: Callable[[Tensor], Tensor]) -> None:
    def forward(inner: Tensor) -> Tensor:
        out = leave(F.linear(inner, linear.weight))
        return out if linear.bias is None else out + linear.bias.to(out.dtype)  # once, not once per process

    linear.forward = forward  # type: ignore[assignment, method-assign]


def mix_slices(layer: Any, mix: Mix, group: Group, tokens: Tensor, routing: Routing) -> Tensor:
    """Run experts of whose inner widths each process has a slice.

    Router and context see all tokens on every process, so their gradients are whole. The weights of the choice meet
    outputs that are parts: their gradient is a part, too, and must add up. Outward biases, which are not cut, count
    once.

    Args:
        layer: the expert layer.
        mix: what it ran before: its slices.
        group: the processes.
        tokens: hidden states.
        routing: who processes which token.
    """
    routing = replace(routing, weights=hand_out(routing.weights, group))
    bias = layer._parameters.get("down_proj_bias")
    if bias is not None:
        layer._parameters["down_proj_bias"] = hand_out(bias, group) * float(group.rank() == 0)
    try:
        part = mix(hand_out(tokens, group), routing)
    finally:
        if bias is not None:
            layer._parameters["down_proj_bias"] = bias
    return add_up(part, group)


def _share_experts(layer: Any, group: Group, *, by_tokens: bool) -> None:
    layer.mix = partial(mix_slices, layer, layer.mix, group)
    if by_tokens:
        _wrap(
            layer,
            before=partial(join_tokens, group=group),
            after=lambda out: (cut_tokens(out[0], group), out[1]),
        )


def _share_vocabulary(model: Any, group: Group) -> None:
    """Embeddings of this process's ids add up; the loss is taken over logits that no process has all of."""
    embeddings = model.base_model.embeddings
    words = getattr(embeddings, "word_embeddings", None)
    decoder = getattr(model, "decoder", None)
    if words is not None:
        words.forward = partial(_look_up, words, group=group)
    if decoder is not None:
        model.score = partial(_score, decoder, group=group)


def _look_up(words: nn.Embedding, ids: Tensor, *, group: Group) -> Tensor:
    start, stop = even_span(words.num_embeddings, group.size(), group.rank())
    own = (ids >= start) & (ids < stop)
    pad = words.padding_idx
    own_pad = pad - start if pad is not None and start <= pad < stop else None
    rows = F.embedding(torch.where(own, ids - start, 0), words.weight, padding_idx=own_pad)
    return add_up(torch.where(own[..., None], rows, 0), group)


def _score(decoder: nn.Linear, hidden: Tensor, labels: Tensor, *, group: Group) -> tuple[Tensor, Tensor]:
    logits = decoder(hand_out(hidden, group))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    first, _ = even_span(decoder.out_features, group.size(), group.rank())
    losses: Tensor = _ParallelCrossEntropy.apply(wide.flatten(0, -2), labels.flatten(), first, group)
    return logits, losses.sum()


class _ParallelCrossEntropy(torch.autograd.Function):
    """Cross-entropy [N] of logits [N, V / processes]; three all-reduces of [N] in place of gathering [N, V]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, first: int, group: Group) -> Tensor:
        highest = logits.max(dim=1).values
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        shares = (logits - highest[:, None]).exp()
        sums = shares.sum(dim=1)
        own = (labels >= first) & (labels < first + logits.shape[1])
        places = torch.where(own, labels - first, 0)
        targets = (logits.gather(1, places[:, None])[:, 0] - highest) * own
        both = torch.stack([sums, targets])
        dist.all_reduce(both, group=group)
        is_target = labels != IGNORED
        ctx.save_for_backward(shares / both[0][:, None], places, own, is_target)
        return (both[0].log() - both[1]) * is_target

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        shares, places, own, is_target = ctx.saved_tensors
        wanted = shares.scatter_add(1, places[:, None], -own[:, None].to(shares.dtype))
        return wanted * (gradient * is_target)[:, None], None, None, None


def _seen_by_tokens(model: Any) -> Iterator[str]:
    """Parameters that each process applied to its own tokens only."""
    encoder = model.base_model.encoder
    owners = [encoder.final_norm]
    for block in encoder.layers:
        owners += [block.attention_norm, block.attention_post_norm, block.ffn_norm, block.ffn_post_norm]
    partial_parameters = {id(parameter) for owner in owners for parameter in owner.parameters()}
    for block in encoder.layers:
        linears = [block.attention.o_proj]
        linears += [dense.down_proj for dense in (block.ffn, block.shared_ffn) if isinstance(dense, nn.Module)]
        partial_parameters |= {
            id(linear.bias) for linear in linears if isinstance(linear, nn.Linear) and linear.bias is not None
        }
    for name, parameter in model.named_parameters():
        if id(parameter) in partial_parameters:
            yield name
