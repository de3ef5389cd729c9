"""One measured situation of `bench experts`: an expert layer, a dense layer of equal active work, and tokens."""

from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sortyard.model.experts import ExpertOptions
from sortyard.model.experts.layer import ExpertLayer
from sortyard.ops import Segments, make_segments
from sortyard.studies.bench.cases import DTYPES

ACTIVATION = "gelu"


@dataclass(frozen=True)
class ExpertCase:
    """What one cell measures.

    Attributes:
        length: Tokens, one sequence.
        dtype: "fp32" or "bf16".
        direction: "forward" (without gradients, as in use) or "forward+backward".
        num_experts: Experts of the layer.
        num_experts_per_tok: Experts of a token.
        hidden_size: Width of a token.
        intermediate_size: Inner width of the dense layer, and of a token's experts together.
        seed: Seed of weights and tokens.
        device: Where it runs.
    """

    length: int
    dtype: str
    direction: str
    num_experts: int
    num_experts_per_tok: int
    hidden_size: int
    intermediate_size: int
    seed: int
    device: str

    @property
    def line(self) -> str:
        """What it has in common with the cases of other lengths."""
        return f"{self.num_experts}x{self.num_experts_per_tok}/{self.dtype}/{self.direction}"

    @property
    def key(self) -> str:
        """The cell's name in a result."""
        return f"{self.line}/{self.length}"

    @property
    def expert_size(self) -> int:
        """Inner width of one expert: a token's experts together are as wide as the dense layer."""
        return self.intermediate_size // self.num_experts_per_tok

    def at(self, length: int) -> Self:
        """Return the same at another length."""
        return replace(self, length=length)

    def fields(self) -> dict[str, Any]:
        """Return what the case is made from, as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ExpertInputs:
    """The tensors of a case, the same for every side.

    Attributes:
        hidden: The tokens.
        gradient: The output's gradient.
        segments: Says that the tokens are one sequence without padding.
        layer: Our expert layer; whoever else has experts takes its weights.
        dense: The dense layer.
    """

    hidden: Float[Tensor, "1 T D"]
    gradient: Float[Tensor, "1 T D"]
    segments: Segments
    layer: ExpertLayer
    dense: nn.Sequential

    @property
    def up(self) -> Tensor:
        """The experts' inward matrices, [E, F, D]."""
        return self.layer.get_parameter("up_proj")

    @property
    def down(self) -> Tensor:
        """The experts' outward matrices, [E, D, F]."""
        return self.layer.down_proj

    @property
    def gate(self) -> Tensor:
        """The router's weights, [E, D]."""
        return self.layer.get_parameter("router.gate")


def make_inputs(case: ExpertCase) -> ExpertInputs:
    """Draw a case's weights and tokens; at another length the weights are the same.

    Args:
        case: The case.

    Returns:
        The inputs; all weights and the tokens ask for gradients.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        layer, dense = _expert_layer(case), _dense_layer(case)
        hidden, gradient = torch.randn(2, 1, case.length, case.hidden_size)
    device, dtype = torch.device(case.device), DTYPES[case.dtype]
    return ExpertInputs(
        hidden=hidden.to(device, dtype).requires_grad_(),
        gradient=gradient.to(device, dtype),
        segments=make_segments(1, case.length, device=device),
        layer=layer.to(device, dtype),
        dense=dense.to(device, dtype),
    )


def expert_cases(
    *,
    experts: tuple[tuple[int, int], ...],
    dtypes: tuple[str, ...],
    directions: tuple[str, ...],
    tokens: tuple[int, ...],
    **shared: Any,
) -> list[ExpertCase]:
    """Every case of a grid, lengths rising fastest, so that a length can be judged by the one before it."""
    return [
        ExpertCase(
            length=length, dtype=dtype, direction=direction, num_experts=num_experts,
            num_experts_per_tok=num_experts_per_tok, **shared,
        )
        for (num_experts, num_experts_per_tok), dtype, direction, length in product(
            experts, dtypes, directions, sorted(tokens)
        )
    ]  # fmt: skip


def _expert_layer(case: ExpertCase) -> ExpertLayer:
    options = ExpertOptions(
        num_experts=case.num_experts,
        num_experts_per_tok=case.num_experts_per_tok,
        num_expert_groups=1,
        num_groups_per_tok=1,
        moe_intermediate_size=case.expert_size,
        context="none",
    )
    return ExpertLayer(options, hidden_size=case.hidden_size, hidden_act=ACTIVATION, gated=False, bias=False)


def _dense_layer(case: ExpertCase) -> nn.Sequential:
    width, inner = case.hidden_size, case.intermediate_size
    return nn.Sequential(nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False))
