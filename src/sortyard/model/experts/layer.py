"""The expert layer: a router, stacked experts and the record of what was decided."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from sortyard.model.experts.balance import balance_loss, of_this_batch
from sortyard.model.experts.context import Context, make_context
from sortyard.model.experts.interface import EAGER, OURS, foreign_function
from sortyard.model.experts.options import ExpertOptions
from sortyard.model.experts.router import Router, make_router
from sortyard.model.experts.routing import RoutingRecord
from sortyard.ops.expert_dispatch import Routing
from sortyard.ops.grouped_mlp import activate, check_activation, grouped_mlp
from sortyard.ops.segments import Segments


class ExpertLayer(nn.Module):
    """A feed-forward layer whose tokens each use a few of many experts.

    Experts are stacked as [E, out, in]: `gate_up_proj` (gated; gate rows first, then up rows) or `up_proj`, and
    `down_proj`; what does not apply is None. Dropout is the block's.

    This is the layout of transformers' experts modules, and with the attributes they describe themselves by, the
    functions of its experts interface run on this layer, too. `config` is set by the model: its experts
    implementation, read anew in every pass, decides. A layer without one runs ours.
    """

    config: PreTrainedConfig | None = None
    is_transposed = False
    is_concatenated = True
    has_post_expert_norm = False
    # Padding carries the expert number E, just as tokens of another rank's experts do under expert parallelism; with
    # this, transformers' functions leave such slots out.
    _is_expert_parallel = True

    def __init__(
        self,
        options: ExpertOptions,
        *,
        hidden_size: int,
        hidden_act: str,
        gated: bool,
        bias: bool,
        layer_index: int = 0,
    ) -> None:
        super().__init__()
        check_activation(hidden_act)
        num_experts, inner = options.num_experts, options.moe_intermediate_size
        self.num_experts = num_experts
        self.hidden_act = hidden_act
        self.gated = self.has_gate = gated
        self.has_bias = bias
        self.balance = options.balance
        self.balance_coef = options.balance_coef
        self.bias_update_rate = options.bias_update_rate
        self.total: Callable[[Tensor], Tensor] = of_this_batch  # replaced where processes share a batch
        self.context: Context = make_context(options)
        self.router: Router = make_router(options, hidden_size=hidden_size, layer_index=layer_index)
        width = 2 * inner if gated else inner
        up = nn.Parameter(torch.empty(num_experts, width, hidden_size))
        up_bias = nn.Parameter(torch.empty(num_experts, width)) if bias else None
        self.gate_up_proj = up if gated else None
        self.gate_up_proj_bias = up_bias if gated else None
        self.up_proj = None if gated else up
        self.up_proj_bias = None if gated else up_bias
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, inner))
        self.down_proj_bias = nn.Parameter(torch.empty(num_experts, hidden_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, std: float = 0.02) -> None:
        """Initialise the experts and the router as a fresh model has them.

        Args:
            std: standard deviation of the normal distribution the weights are drawn from.
        """
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("_bias"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=std)
        self.router.reset_parameters(std)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        segments: Segments,
        token_ids: Int[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RoutingRecord]:
        """Route every real token through its experts; padding positions come out zero.

        Args:
            hidden: hidden states.
            segments: which positions form one sequence.
            token_ids: vocabulary ids, needed by the token-hash router only.

        Returns:
            The weighted sum of each token's experts, and the record of the routing.
        """
        routing = self.router(hidden, self.context(hidden, segments), token_ids, segments)
        mixed = self.mix(hidden.flatten(0, 1), routing)
        balance = balance_loss(routing, form=self.balance, coef=self.balance_coef, total=self.total)
        record = RoutingRecord(routing.scores, routing.experts, routing.weights, routing.loads, balance)
        return mixed.view_as(hidden), record

    def mix(self, tokens: Float[Tensor, "N D"], routing: Routing) -> Float[Tensor, "N D"]:
        """Run the experts, without the router; tensor parallelism wraps this.

        Args:
            tokens: hidden states.
            routing: who processes which token.

        Returns:
            The weighted sum of each token's experts.
        """
        name = OURS if self.config is None else self.config._experts_implementation
        if name not in (OURS, EAGER):
            return foreign_function(name)(self, tokens, routing.experts, routing.weights)
        return grouped_mlp(
            tokens,
            routing,
            up=self._up,
            down=self.down_proj,
            up_bias=self._up_bias,
            down_bias=self.down_proj_bias,
            activation=self.hidden_act,
            gated=self.gated,
            backend="reference" if name == EAGER else None,
        )

    def act_fn(self, inner: Float[Tensor, "R F"]) -> Float[Tensor, "R F"]:
        """The activation of ungated experts; part of transformers' face.

        Args:
            inner: inner values.

        Returns:
            Activated values.
        """
        return activate(inner, activation=self.hidden_act, gated=False)

    def _apply_gate(self, inner: Float[Tensor, "R up"]) -> Float[Tensor, "R F"]:
        return activate(inner, activation=self.hidden_act, gated=True)

    def expert_outputs(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "E N D"]:
        """Run every expert on every token, unweighted, to compare experts.

        Args:
            tokens: hidden states of some tokens, in the type of the experts' weights.

        Returns:
            Each expert's outputs.
        """
        inner = tokens @ self._up.transpose(1, 2)
        inner = inner if self._up_bias is None else inner + self._up_bias[:, None]
        outputs = activate(inner, activation=self.hidden_act, gated=self.gated) @ self.down_proj.transpose(1, 2)
        return outputs if self.down_proj_bias is None else outputs + self.down_proj_bias[:, None]

    @property
    def _up(self) -> Tensor:
        up = self.gate_up_proj if self.gated else self.up_proj
        assert up is not None
        return up

    @property
    def _up_bias(self) -> Tensor | None:
        return self.gate_up_proj_bias if self.gated else self.up_proj_bias

    @torch.no_grad()
    def update_bias(self, loads: Float[Tensor, " E"]) -> None:
        """Move the selection bias of overloaded experts down and of idle ones up, once per optimizer step.

        Args:
            loads: routed copies per expert, summed over the whole step (and all data-parallel ranks).
        """
        self.router.update_bias(loads, self.bias_update_rate)
