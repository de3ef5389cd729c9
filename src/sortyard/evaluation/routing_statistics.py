"""How the experts of a model are used: one value with every statistic, layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sortyard.evaluation.routing import (
    entropy_bits,
    inverse_simpson,
    max_violation,
    mutual_information,
    share_used,
    utilisation,
    variation,
)
from sortyard.evaluation.routing_choices import ExpertPair, frequent_pairs
from sortyard.evaluation.routing_collection import RoutingCounts
from sortyard.evaluation.routing_tokens import TokenLift, token_lifts

NUM_TOP_TOKENS = 8
NUM_PAIRS = 8


@dataclass(frozen=True)
class LayerRouting:
    """Use of one layer's experts.

    Attributes:
        loads: routed copies of each expert, over all texts.
        utilisation: U_H = exp(entropy of the loads) / N, in [1/N, 1].
        inverse_simpson: U_2 = 1 / (N * sum of squared load shares), in [1/N, 1].
        share_used: share of experts with at least a quarter of their fair load (A_0.25).
        dead_experts: experts without any load.
        variation: coefficient of variation of the loads.
        max_violation: largest load over the fair load, minus 1 (MaxVio).
        redundancy: mean cosine of two experts' outputs on the same token.
        specialisation: mutual information of expert and domain in bits; None where there is only one domain.
        domain_loads: routed copies of each expert, domain by domain.
        domain_utilisation: U_H of each domain by itself.
        pairs: experts that most often share their tokens.
        top_tokens: for each expert, the pieces of the vocabulary that it gets most beyond its part.
    """

    loads: tuple[int, ...]
    utilisation: float
    inverse_simpson: float
    share_used: float
    dead_experts: int
    variation: float
    max_violation: float
    redundancy: float
    specialisation: float | None
    domain_loads: tuple[tuple[int, ...], ...]
    domain_utilisation: tuple[float, ...]
    pairs: tuple[ExpertPair, ...]
    top_tokens: tuple[tuple[TokenLift, ...], ...]


@dataclass(frozen=True)
class Saturation:
    """How much of the final routing earlier checkpoints had.

    Attributes:
        steps: steps of the checkpoints, oldest first.
        shares: for each checkpoint, the share of chosen experts that are the final ones, layer by layer.
        num_tokens: tokens compared.
    """

    steps: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    num_tokens: int


@dataclass(frozen=True)
class RoutingStatistics:
    """Use of a model's experts over some texts.

    Random routing reaches a utilisation of 1, and a single domain's is low in a specialised model, so the headline
    means something only beside the model's quality and over the whole mix of texts.

    Attributes:
        num_experts: experts N of a layer.
        num_experts_per_tok: experts k of a token.
        domains: name and number of tokens of each text, padding excluded.
        layers: the expert layers, in order.
        saturation: how early the routing settled; None where there is nothing to compare with.
    """

    num_experts: int
    num_experts_per_tok: int
    domains: tuple[tuple[str, int], ...]
    layers: tuple[LayerRouting, ...]
    saturation: Saturation | None = None

    @property
    def headline(self) -> float:
        """Utilisation of the least evenly used layer."""
        return self.layers[self.headline_layer].utilisation

    @property
    def headline_layer(self) -> int:
        """That layer's number, counted from 0 over the expert layers."""
        return min(range(len(self.layers)), key=lambda i: self.layers[i].utilisation)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(tokens for _, tokens in self.domains)

    @property
    def dead_experts(self) -> int:
        """Experts of any layer that got no token."""
        return sum(layer.dead_experts for layer in self.layers)

    def to_dict(self, *, token_name: Callable[[int], str]) -> dict[str, Any]:
        """Return everything as JSON values; layers and experts are numbered from 0.

        Args:
            token_name: the text of a piece of the vocabulary.
        """
        settled = self.saturation
        return {
            "headline": self.headline,
            "headline_layer": self.headline_layer,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "num_tokens": self.num_tokens,
            "dead_experts": self.dead_experts,
            "domains": [{"name": name, "tokens": tokens} for name, tokens in self.domains],
            "domain_entropy": entropy_bits([tokens for _, tokens in self.domains]),
            "layers": [
                {"layer": number, **_layer_values(layer, names=self._names, token_name=token_name)}
                for number, layer in enumerate(self.layers)
            ],
            "saturation": None
            if settled is None
            else {
                "tokens": settled.num_tokens,
                "checkpoints": [
                    {"step": step, "layers": list(shares)}
                    for step, shares in zip(settled.steps, settled.shares, strict=True)
                ],
            },
        }

    @property
    def _names(self) -> list[str]:
        return [name for name, _ in self.domains]


def routing_statistics(counts: RoutingCounts) -> RoutingStatistics:
    """Work out every statistic that needs one model only.

    Args:
        counts: what `collect_routing` counted.

    Returns:
        The statistics, without saturation.
    """
    return RoutingStatistics(
        num_experts=counts.loads.shape[-1],
        num_experts_per_tok=counts.num_experts_per_tok,
        domains=tuple(zip(counts.domains, counts.tokens, strict=True)),
        layers=tuple(
            _layer(loads, pieces=pieces, together=together, redundancy=redundancy)
            for loads, pieces, together, redundancy in zip(
                counts.loads.unbind(dim=1), counts.pieces, counts.together, counts.redundancy, strict=True
            )
        ),
    )


def _layer(loads: Tensor, *, pieces: Tensor, together: Tensor, redundancy: float) -> LayerRouting:
    """Summarise a layer's loads [domains, E], pieces [E, V] and shared tokens [E, E]."""
    by_domain = loads.numpy()
    whole = by_domain.sum(axis=0)
    return LayerRouting(
        loads=tuple(whole.tolist()),
        utilisation=float(utilisation(whole)),
        inverse_simpson=float(inverse_simpson(whole)),
        share_used=float(share_used(whole)),
        dead_experts=int((whole == 0).sum()),
        variation=float(variation(whole)),
        max_violation=float(max_violation(whole)),
        redundancy=redundancy,
        specialisation=mutual_information(by_domain) if len(by_domain) > 1 else None,
        domain_loads=tuple(tuple(row) for row in by_domain.tolist()),
        domain_utilisation=tuple(utilisation(by_domain).tolist()),
        pairs=frequent_pairs(together, limit=NUM_PAIRS),
        top_tokens=token_lifts(pieces.numpy(), limit=NUM_TOP_TOKENS),
    )


def _layer_values(layer: LayerRouting, *, names: list[str], token_name: Callable[[int], str]) -> dict[str, Any]:
    plain = (
        "loads", "utilisation", "inverse_simpson", "share_used", "dead_experts", "variation", "max_violation",
        "redundancy", "specialisation",
    )  # fmt: skip
    return {
        **{name: getattr(layer, name) for name in plain},
        "domain_utilisation": dict(zip(names, layer.domain_utilisation, strict=True)),
        "domain_loads": dict(zip(names, layer.domain_loads, strict=True)),
        "co_activation": [pair._asdict() for pair in layer.pairs],
        "top_tokens": [
            [{"token": token_name(one.token), "copies": one.copies, "lift": one.lift} for one in tokens]
            for tokens in layer.top_tokens
        ],
    }
