"""Experts as others run them, on our layer's weights: transformers' experts functions, and the plain loop.

All take the tokens' experts from a plain router on our gate's weights, so that none is charged for what ours reports.
"""

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sortyard.studies.bench.experts_cases import ACTIVATION, ExpertCase, ExpertInputs

# In transformers the experts of this model alone are plain MLPs without a gate, as ours are here.
_MODULE, _CLASS = "transformers.models.nemotron_h.modeling_nemotron_h", "NemotronHExperts"
IMPLEMENTATIONS = {"eager": "eager", "batched": "batched_mm", "grouped": "grouped_mm"}
# Gathered weights that are alive at once: in a forward pass those of both products, and one gradient more backward.
_GATHERED = {"forward": 2, "forward+backward": 3}
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_route(
    tokens: Float[Tensor, "N D"], gate: Float[Tensor, "E D"], *, num_experts_per_tok: int
) -> tuple[Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    """Choose as our flat router does: the largest sigmoids in float32, divided by their sum.

    Args:
        tokens: token vectors.
        gate: the gate's weights.
        num_experts_per_tok: experts of a token.

    Returns:
        The chosen experts, and their weights in the tokens' dtype.
    """
    scores = F.linear(tokens.float(), gate.float()).sigmoid()
    weights, experts = scores.topk(num_experts_per_tok, dim=1)
    return experts, (weights / weights.sum(1, keepdim=True)).to(tokens.dtype)


def routed_call(inputs: ExpertInputs, case: ExpertCase, experts: Experts) -> Callable[[], Tensor]:
    """Put the plain router before some experts."""
    gate = inputs.gate

    def call() -> Tensor:
        tokens = inputs.hidden.flatten(0, 1)
        chosen, weights = plain_route(tokens, gate, num_experts_per_tok=case.num_experts_per_tok)
        return experts(tokens, chosen, weights).view_as(inputs.hidden)

    return call


def missing_peer() -> str:
    """Why transformers' experts cannot be had; empty where they can."""
    try:
        getattr(import_module(_MODULE), _CLASS)
    except (ImportError, AttributeError) as error:
        return f"not in the installed transformers: {error}"
    return ""


def transformers_experts(inputs: ExpertInputs, case: ExpertCase, *, implementation: str) -> Experts:
    """Return transformers' experts module on our weights, set to one of its functions."""
    config = SimpleNamespace(
        n_routed_experts=case.num_experts,
        hidden_size=case.hidden_size,
        moe_intermediate_size=case.expert_size,
        moe_latent_size=None,
        mlp_hidden_act=ACTIVATION,
        _experts_implementation=implementation,
    )
    with torch.device("meta"):
        experts: Any = getattr(import_module(_MODULE), _CLASS)(config)
    experts.up_proj, experts.down_proj = inputs.up, inputs.down
    called: Experts = experts
    return called


def naive_experts(inputs: ExpertInputs, _: ExpertCase) -> Experts:
    """Return the loop that everyone writes first: a mask and an indexed matrix for each expert."""
    up, down = inputs.up, inputs.down

    def call(tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(tokens)
        for expert in range(len(up)):
            rows, slots = (chosen == expert).nonzero(as_tuple=True)
            inner = F.gelu(F.linear(tokens[rows], up[expert]))
            out = out.index_add(0, rows, F.linear(inner, down[expert]) * weights[rows, slots, None])
        return out

    return call


def gathered_bytes(case: ExpertCase, itemsize: int) -> int:
    """Bytes that the batched function needs for certain: a matrix of its own for every routed copy."""
    matrix = case.hidden_size * case.expert_size * itemsize
    return _GATHERED[case.direction] * case.length * case.num_experts_per_tok * matrix
