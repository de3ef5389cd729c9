"""Routers: who decides which experts a token gets."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import initialization as init

from sortyard.model.experts.options import ExpertOptions
from sortyard.ops.expert_dispatch import Routing, route
from sortyard.ops.segments import Segments


@runtime_checkable
class Router(Protocol):
    """Decides, from tokens and their context, who processes them."""

    def __call__(
        self,
        hidden: Float[Tensor, "B T D"],
        context: Float[Tensor, "B T C"] | None,
        token_ids: Int[Tensor, "B T"] | None,
        segments: Segments,
        /,
    ) -> Routing:
        """Route every real token."""

    def reset_parameters(self, std: float) -> None:
        """Initialise parameters and buffers."""

    def update_bias(self, loads: Float[Tensor, " E"], rate: float) -> None:
        """Move the selection bias against the loads."""


def make_router(options: ExpertOptions, *, hidden_size: int, layer_index: int) -> Router:
    """Build the router a layer's options name.

    Args:
        options: the layer's settings.
        hidden_size: width D of the hidden states.
        layer_index: number of the layer; fixed random choices differ from layer to layer.

    Returns:
        The router, a module.
    """
    seed = options.router_seed + 1_000_003 * layer_index
    if options.router == "token_hash":
        return TokenHashRouter(options, seed=seed)
    if options.router == "frozen_random":
        return FrozenRandomRouter(options, hidden_size=hidden_size, seed=seed)
    return ContextRouter(options, hidden_size=hidden_size)


class _Selection:
    """The part of the options that `route` needs."""

    def __init__(self, options: ExpertOptions) -> None:
        self.num_groups = options.num_expert_groups
        self.num_groups_per_tok = options.num_groups_per_tok
        self.num_experts_per_tok = options.num_experts_per_tok
        self.weights = options.routing_weights

    def __call__(
        self,
        scores: Float[Tensor, "N E"],
        segments: Segments,
        *,
        bias: Float[Tensor, " E"] | None,
        group_scores: Float[Tensor, "N G"] | None,
    ) -> Routing:
        return route(
            scores,
            num_groups=self.num_groups,
            num_groups_per_tok=self.num_groups_per_tok,
            num_experts_per_tok=self.num_experts_per_tok,
            selection_bias=bias,
            group_scores=group_scores,
            weights=self.weights,
            mask=None if segments.is_trivial else segments.ids.flatten() >= 0,
            num_tokens=segments.num_tokens,
        )


class ContextRouter(nn.Module):
    """Scores experts with g = sigmoid(W [h; c]) in float32, and groups by their best experts or by sigmoid(V c).

    The buffer `expert_bias` enters selection only; `update_bias` moves it between steps, a forward pass never. It stays
    float32 in a model of 16 bits, where its steps would be lost.
    """

    def __init__(self, options: ExpertOptions, *, hidden_size: int) -> None:
        super().__init__()
        context_size = 0 if options.context == "none" else hidden_size
        self.hidden_size = hidden_size
        self.selection = _Selection(options)
        self.gate = nn.Parameter(torch.empty(options.num_experts, hidden_size + context_size))
        shape = (options.num_expert_groups, context_size)
        self.group_gate = nn.Parameter(torch.empty(shape)) if options.group_gate == "context" else None
        self.expert_bias: Tensor
        self.register_buffer("expert_bias", torch.zeros(options.num_experts, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ContextRouter":
        before = self.expert_bias
        super()._apply(fn, recurse)
        if self.expert_bias.itemsize < torch.float32.itemsize:
            self.expert_bias = before.to(self.expert_bias.device, torch.float32)
        return self

    def reset_parameters(self, std: float) -> None:
        """Draw the gates and clear the bias; a gate of zeros would send every token to the same experts.

        Args:
            std: standard deviation of the gates' weights.
        """
        init.normal_(self.gate, mean=0.0, std=std)
        if self.group_gate is not None:
            init.normal_(self.group_gate, mean=0.0, std=std)
        init.zeros_(self.expert_bias)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        context: Float[Tensor, "B T C"] | None,
        token_ids: Int[Tensor, "B T"] | None,  # noqa: ARG002
        segments: Segments,
    ) -> Routing:
        """Score and select; gates are float32 (float64 for float64 input) under autocast too."""
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
            gate = self.gate.to(dtype)
            logits = F.linear(hidden.to(dtype), gate[:, : self.hidden_size])
            if context is not None:
                logits = logits + F.linear(context.to(dtype), gate[:, self.hidden_size :])
            groups = None
            if self.group_gate is not None and context is not None:
                groups = F.linear(context.to(dtype), self.group_gate.to(dtype)).sigmoid().flatten(0, 1)
            scores = logits.sigmoid().flatten(0, 1)
            return self.selection(scores, segments, bias=self.expert_bias.to(dtype), group_scores=groups)

    @torch.no_grad()
    def update_bias(self, loads: Float[Tensor, " E"], rate: float) -> None:
        """Step the bias of overloaded experts down and of idle ones up, then centre it.

        Args:
            loads: routed copies per expert over the whole optimizer step.
            rate: size of the step; 0 leaves the bias alone.

        Source: loss-free balancing, Wang et al. 2024 (arXiv:2408.15664); they do not centre.
        """
        if rate == 0:
            return
        wide = torch.promote_types(self.expert_bias.dtype, torch.float32)
        loads = loads.to(self.expert_bias.device, wide)
        moved = self.expert_bias + rate * torch.sign(loads.mean() - loads)
        self.expert_bias.copy_(moved - moved.mean())


class FrozenRandomRouter(ContextRouter):
    """A control: the context router with gates that are drawn once from a seed and never learn."""

    def __init__(self, options: ExpertOptions, *, hidden_size: int, seed: int) -> None:
        super().__init__(options, hidden_size=hidden_size)
        self.seed = seed
        for name in [name for name, _ in self.named_parameters()]:
            shape = self.get_parameter(name).shape
            delattr(self, name)
            self.register_buffer(name, torch.empty(shape))

    def reset_parameters(self, std: float) -> None:
        """Draw the gates from the seed and clear the bias.

        Args:
            std: standard deviation of the gates' weights.
        """
        generator = torch.Generator("cpu").manual_seed(self.seed)
        for name, gate in self.named_buffers():
            if name != "expert_bias":
                drawn = torch.randn(gate.shape, generator=generator, device="cpu", dtype=torch.float32)
                init.copy_(gate, drawn * std)
        init.zeros_(self.expert_bias)


class TokenHashRouter(nn.Module):
    """A control: a token's experts are a seeded hash of its vocabulary id, equally weighted; nothing learns.

    Hash layers (Roller et al. 2021, arXiv:2106.04426) keep a table over the vocabulary; the hash is computed here,
    so that nothing depends on the vocabulary's size.
    """

    def __init__(self, options: ExpertOptions, *, seed: int) -> None:
        super().__init__()
        self.num_experts = options.num_experts
        self.seed = seed
        self.selection = _Selection(options)

    def reset_parameters(self, std: float) -> None:
        """Do nothing: the router holds no state."""

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        context: Float[Tensor, "B T C"] | None,  # noqa: ARG002
        token_ids: Int[Tensor, "B T"] | None,
        segments: Segments,
    ) -> Routing:
        """Select by the hash of each token's id."""
        if token_ids is None:
            raise ValueError("router='token_hash' needs token ids; pass input_ids instead of inputs_embeds")
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        pairs = token_ids.flatten()[:, None] * self.num_experts + torch.arange(self.num_experts, device=hidden.device)
        hashed = _mix(_mix(pairs) ^ _mix(torch.full_like(pairs, self.seed)))
        routing = self.selection(hashed.to(dtype) / 2**32, segments, bias=None, group_scores=None)
        real = (routing.experts < self.num_experts).to(dtype)
        return Routing(
            routing.experts, real / real.shape[1], routing.scores, routing.loads, num_tokens=routing.num_tokens
        )

    def update_bias(self, loads: Float[Tensor, " E"], rate: float) -> None:
        """Do nothing: the choice is fixed."""


def _mix(values: Int[Tensor, "N E"]) -> Int[Tensor, "N E"]:
    """Scramble 32-bit values; multiply and xor-shift, as in integer hash finalisers."""
    for multiplier in (0x45D9F3B, 0x45D9F3B):
        values = ((values ^ (values >> 16)) * multiplier) & 0xFFFFFFFF
    return values ^ (values >> 16)
