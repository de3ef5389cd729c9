"""Where each of a checkpoint's weights goes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from sortyard.interop.upcycling.checkpoint import Checkpoint
from sortyard.interop.upcycling.experts import Mlp, make_experts
from sortyard.interop.upcycling.families import family_of
from sortyard.interop.upcycling.options import UpcyclingOptions
from sortyard.model.configuration import SortyardConfig


@dataclass
class Placement:
    """Weights under our names.

    Attributes:
        weights: our names and tensors.
        mapped: the checkpoint's names and where each went.
        unused: the checkpoint's names that have no place.
        drawn: our names whose values the checkpoint had nothing for.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    mapped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)

    def rename(self, old: str, new: str) -> None:
        """Note that what went to one name goes to another."""
        self.mapped = {
            source: tuple(new if name == old else name for name in names) for source, names in self.mapped.items()
        }


def translate(checkpoint: Checkpoint) -> Placement:
    """Name a checkpoint's weights as a dense model of ours does."""
    found = Placement(unused=list(checkpoint.unknown))
    config = checkpoint.model.config
    family = family_of(config, where=checkpoint.name)
    for name, tensor in checkpoint.weights().items():
        ours = list(family.convert(name, tensor, config=config, head=checkpoint.head))
        if not ours:
            found.unused.append(name)
            continue
        found.weights.update(ours)
        found.mapped[name] = tuple(part for part, _ in ours)
    return found


def place_experts(placement: Placement, *, config: SortyardConfig, options: UpcyclingOptions) -> None:
    """Replace the dense feed-forward layers by experts, where the configuration has some.

    Args:
        placement: a dense model's; changed in place.
        config: of the sparse model.
        options: how experts are made.
    """
    for layer in range(config.num_hidden_layers):
        if not config.has_experts(layer):
            continue
        block = f"model.encoder.layers.{layer}"
        up = "gate_up_proj" if config.gated_ffn else "up_proj"
        dense = _dense_mlp(placement.weights, f"{block}.ffn", up=up, is_gated=config.gated_ffn)
        experts = make_experts(dense, options=options, layer=layer)
        is_shared = options.experts_from == "shared"
        for leaf, tensor in _named(experts, up=up, has_bias=config.use_bias):
            name = f"{block}.ffn.{leaf}"
            placement.weights[name] = tensor
            if is_shared:
                placement.drawn.add(name)
        _move(placement, f"{block}.ffn", parts=(up, "down_proj"), to=f"{block}.shared_ffn" if is_shared else "")


def _move(placement: Placement, prefix: str, *, parts: tuple[str, str], to: str) -> None:
    """Take a dense layer's weights away, or `to` another place; the experts that were made of them stay."""
    for part in parts:
        for leaf in ("weight", "bias"):
            old = f"{prefix}.{part}.{leaf}"
            if old not in placement.weights:
                continue
            tensor = placement.weights.pop(old)
            new = f"{to}.{part}.{leaf}" if to else f"{prefix}.{part if leaf == 'weight' else f'{part}_bias'}"
            placement.rename(old, new)
            if to:
                placement.weights[new] = tensor


def _dense_mlp(weights: dict[str, Tensor], prefix: str, *, up: str, is_gated: bool) -> Mlp:
    return Mlp(
        up=weights[f"{prefix}.{up}.weight"],
        down=weights[f"{prefix}.down_proj.weight"],
        up_bias=weights.get(f"{prefix}.{up}.bias"),
        down_bias=weights.get(f"{prefix}.down_proj.bias"),
        num_parts=2 if is_gated else 1,
    )


def _named(experts: Mlp, *, up: str, has_bias: bool) -> Iterator[tuple[str, Tensor]]:
    yield up, experts.up
    yield "down_proj", experts.down
    if has_bias:  # a checkpoint may have biases elsewhere only: then these are zero
        num_experts, width, hidden_size = experts.up.shape
        yield f"{up}_bias", experts.up.new_zeros(num_experts, width) if experts.up_bias is None else experts.up_bias
        yield (
            "down_proj_bias",
            experts.down.new_zeros(num_experts, hidden_size) if experts.down_bias is None else experts.down_bias,
        )
