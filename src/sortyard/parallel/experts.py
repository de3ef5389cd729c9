"""Expert parallelism, and a balance loss that counts the tokens of all processes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sortyard.ops.expert_dispatch import Routing, combine, dispatch, sort_copies
from sortyard.parallel.collectives import Group, add_up, exchange
from sortyard.parallel.placement import Placement, even_span


@runtime_checkable
class SharedExperts(Protocol):
    """What these functions need of an expert layer."""

    num_experts: int
    mix: Callable[[Tensor, Routing], Tensor]
    total: Callable[[Tensor], Tensor]


def cut_experts(model: Any, *, group: Group, placements: dict[str, Placement]) -> None:
    """Leave each process its experts of every layer, and send every token copy to where its expert is.

    Args:
        model: a head of sortyard.model, or a part of one.
        group: processes that see different rows and hold different experts.
        placements: by the parameters' names; updated.
    """
    for prefix, layer in model.named_modules():
        if not isinstance(layer, SharedExperts):
            continue
        span = even_span(layer.num_experts, group.size(), group.rank())
        for leaf, parameter in list(layer.named_parameters(recurse=False)):  # type: ignore[attr-defined]
            own = parameter.detach()[slice(*span)].clone()
            setattr(layer, leaf, nn.Parameter(own, requires_grad=parameter.requires_grad))
            name = f"{prefix}.{leaf}"
            placements[name] = replace(placements[name].cut(0, (span,)), by_expert_parallelism=True)
        layer.mix = partial(_mix_elsewhere, layer.mix, group)


def balance_over(model: nn.Module, *, group: Group) -> None:
    """Make balance losses those of all rows of a micro-batch: the loss is not linear, a mean of local ones is another.

    A process's gradient is that of its own tokens, so gradients add up.
    """
    for layer in model.modules():
        if isinstance(layer, SharedExperts):
            layer.total = partial(add_up, group=group)


def _mix_elsewhere(mix: Callable[[Tensor, Routing], Tensor], group: Group, tokens: Tensor, routing: Routing) -> Tensor:
    """Every copy goes to its expert's process and comes back; weights stay, so their gradients are whole.

    Dropless: a process receives as many copies as there are.
    """
    order = sort_copies(routing)
    num_experts, size = routing.loads.shape[0], group.size()
    counts = torch.bincount(order.experts, minlength=num_experts)
    own = num_experts // size
    sent = counts.view(size, own)  # [processes, experts of each]
    received = sent.clone()  # of a length that fits where a dry run exchanges nothing
    dist.all_to_all_single(received, sent, group=group)
    send, receive = sent.sum(1).tolist(), received.sum(1).tolist()
    copies = exchange(dispatch(tokens, order), group, send=send, receive=receive)

    experts = torch.repeat_interleave(torch.arange(own, device=tokens.device).repeat(size), received.flatten())[:, None]
    local = Routing(
        experts=experts,
        weights=torch.ones_like(experts, dtype=routing.weights.dtype),
        scores=routing.scores.new_zeros(len(experts), own),
        loads=received.sum(0).to(routing.loads.dtype),
        num_tokens=len(experts),
    )
    back = exchange(mix(copies, local), group, send=receive, receive=send)
    return combine(back, order, weights=routing.weights)
