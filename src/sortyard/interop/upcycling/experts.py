"""From one dense feed-forward layer to experts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sortyard.errors import InputError
from sortyard.interop.upcycling.options import UpcyclingOptions
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.options import ExpertOptions
from sortyard.model.experts.router import FrozenRandomRouter


@dataclass(frozen=True)
class Mlp:
    """Weights of one feed-forward layer, or of E experts when each has a leading dimension E.

    Attributes:
        up: [(E), F, D], or gate rows then up rows [(E), 2F, D].
        down: [(E), D, F].
        up_bias: [(E), F or 2F] or None.
        down_bias: [(E), D] or None.
        num_parts: 2 if gate and up are stacked, else 1.
    """

    up: Tensor
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    num_parts: int


def expert_options(options: UpcyclingOptions, *, intermediate_size: int) -> ExpertOptions:
    """Settings of the expert layers.

    Args:
        options: what the user asked for.
        intermediate_size: inner width F of the dense layers.

    Returns:
        The model's expert settings.

    Raises:
        InputError: F cannot be cut into `num_groups` pieces, or the counts do not fit each other.
    """
    groups = options.num_groups
    routing = {name: getattr(options, name) for name in ("context", "group_gate", "balance", "balance_coef")}
    if options.num_experts == 1:
        return ExpertOptions(num_experts=1, moe_intermediate_size=intermediate_size, **routing)
    if options.takes_one_of_each_group and intermediate_size % groups:
        fitting = [n for n in range(1, options.num_experts) if intermediate_size % n == 0 == options.num_experts % n]
        raise InputError(
            f"num_groups={groups}: the checkpoint's feed-forward width {intermediate_size} cannot be cut into {groups} "
            f"equal shards; with num_experts={options.num_experts} choose one of {', '.join(map(str, fitting))}"
        )
    chosen = groups if options.takes_one_of_each_group else options.num_experts_per_tok
    try:
        return ExpertOptions(
            num_experts=options.num_experts,
            num_expert_groups=groups,
            num_groups_per_tok=max(n for n in range(1, min(groups, chosen) + 1) if chosen % n == 0),
            num_experts_per_tok=chosen,
            moe_intermediate_size=intermediate_size // (groups if options.takes_one_of_each_group else 1),
            routing_weights="straight_through" if options.experts_from == "shards" else "normalized",
            **routing,
        )
    except ValueError as error:
        raise InputError(f"upcycle: {error}") from error


def make_experts(dense: Mlp, *, options: UpcyclingOptions, layer: int) -> Mlp:
    """Turn a dense layer into experts in the way asked for.

    Args:
        dense: the layer's weights.
        options: the way, counts and seed.
        layer: its number, so that layers are drawn differently.

    Returns:
        The experts' weights; for `shared` new ones that give zero until they have learnt.
    """
    generator = torch.Generator().manual_seed(options.seed + 1_000_003 * layer)
    ways: dict[str, Callable[[Mlp], Mlp]] = {
        "shards": partial(
            _shards, num_shards=options.num_groups, num_replicas=options.num_experts // options.num_groups
        ),
        "copies": partial(_copies, number=options.num_experts),
        "drop": partial(_dropped, number=options.num_experts, ratio=options.drop_ratio, generator=generator),
        "shared": partial(_silent, options=options, generator=generator),
    }
    return ways[options.experts_from](dense)


def _shards(dense: Mlp, *, num_shards: int, num_replicas: int) -> Mlp:
    """Cut the inner units into shards and repeat each; the shards' outputs add up to the layer's.

    Expert g * num_replicas + r is replica r of shard g, so a group's experts are alike.
    """

    def rows(x: Tensor) -> Tensor:
        parts: Tensor = x.unflatten(0, (dense.num_parts, num_shards, -1))  # [P, G, F / G, ...]
        return parts.transpose(0, 1).flatten(1, 2)

    pieces = Mlp(
        up=rows(dense.up),
        down=dense.down.unflatten(1, (num_shards, -1)).transpose(0, 1),  # [G, D, F / G]
        up_bias=None if dense.up_bias is None else rows(dense.up_bias),
        down_bias=None if dense.down_bias is None else (dense.down_bias / num_shards).expand(num_shards, -1),
        num_parts=dense.num_parts,
    )
    return _each(pieces, lambda x: x.repeat_interleave(num_replicas, dim=0))


def _copies(dense: Mlp, *, number: int) -> Mlp:
    return _each(dense, lambda x: x.expand(number, *x.shape).clone())


def _dropped(dense: Mlp, *, number: int, ratio: float, generator: torch.Generator) -> Mlp:
    """Copies, in each of which a share of the inner units is drawn anew with the mean and spread of those dropped.

    Source: Nakamura et al. 2025, "Drop-Upcycling", arXiv:2502.19261.
    """
    experts = _copies(dense, number=number)
    width = dense.down.shape[1]
    for expert in range(number):
        units = torch.randperm(width, generator=generator)[: round(ratio * width)]
        _redraw(experts.down[expert].T, units, generator=generator)
        for part in range(dense.num_parts):
            _redraw(experts.up[expert], units + part * width, generator=generator)
            if experts.up_bias is not None:
                _redraw(experts.up_bias[expert], units + part * width, generator=generator)
    return experts


def _redraw(matrix: Tensor, rows: Tensor, *, generator: torch.Generator) -> None:
    old = matrix[rows]
    drawn = torch.randn(old.shape, generator=generator, dtype=torch.float32).to(old)
    matrix[rows] = old.mean() + old.std() * drawn


def _silent(dense: Mlp, *, options: UpcyclingOptions, generator: torch.Generator) -> Mlp:
    """New experts as wide as a shard: input weights spread like the layer's, output weights zero."""
    shape = (options.num_experts, dense.up.shape[0] // options.num_groups, dense.up.shape[1])
    up = torch.randn(shape, generator=generator).to(dense.up) * dense.up.std()
    like = _shards(dense, num_shards=options.num_groups, num_replicas=options.num_experts // options.num_groups)
    zeros = _each(like, torch.zeros_like)
    return Mlp(up=up, down=zeros.down, up_bias=zeros.up_bias, down_bias=zeros.down_bias, num_parts=dense.num_parts)


def _each(mlp: Mlp, change: Callable[[Tensor], Tensor]) -> Mlp:
    return Mlp(
        up=change(mlp.up),
        down=change(mlp.down),
        up_bias=None if mlp.up_bias is None else change(mlp.up_bias),
        down_bias=None if mlp.down_bias is None else change(mlp.down_bias),
        num_parts=mlp.num_parts,
    )


@torch.no_grad()
def centre_gates(model: torch.nn.Module) -> None:
    """Let new gates read [h - c], a token's difference from its context, by making the context's half the negative.

    Trained states share a large mean; a gate drawn at random would read little else and send nearly all tokens to the
    same replicas. It costs nothing: both halves are learnt.
    """
    for layer in model.modules():
        if not isinstance(layer, ExpertLayer) or isinstance(layer.router, FrozenRandomRouter):
            continue
        gate = getattr(layer.router, "gate", None)
        width = layer.down_proj.shape[1]
        if gate is not None and gate.shape[1] == 2 * width:
            gate[:, width:] = -gate[:, :width]
