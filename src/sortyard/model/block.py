"""One block: attention and feed-forward around two residual lines; the only place where the two meet."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sortyard.model.attention.layer import SelfAttention
from sortyard.model.configuration import SortyardConfig
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.routing import RoutingRecord
from sortyard.model.feed_forward import FeedForward
from sortyard.ops.segments import Segments


class BlockOutput(NamedTuple):
    """States after a block, and what it reports.

    One flat tuple: reentrant activation checkpointing carries gradients through tensors of the outermost tuple only,
    and the balance loss needs them.

    Attributes:
        hidden: token states.
        attention: the attention weights, if asked for.
        scores, experts, weights, loads, balance: the fields of `RoutingRecord`; None for a dense layer.
    """

    hidden: Tensor
    attention: Tensor | None
    scores: Tensor | None = None
    experts: Tensor | None = None
    weights: Tensor | None = None
    loads: Tensor | None = None
    balance: Tensor | None = None

    @property
    def routing(self) -> RoutingRecord | None:
        """What the experts decided; None for a dense layer."""
        fields = (self.scores, self.experts, self.weights, self.loads, self.balance)
        return None if self.scores is None else RoutingRecord(*fields)  # type: ignore[arg-type]


class Block(GradientCheckpointingLayer):
    """Attention, then a dense or routed feed-forward layer, with the norms before or after."""

    def __init__(self, config: SortyardConfig, layer: int) -> None:
        super().__init__()
        pre = config.norm_position == "pre"
        has_first_norm = layer > 0 or config.first_attention_norm
        self.attention_norm = _norm(config) if pre and has_first_norm else nn.Identity()
        self.attention = SelfAttention(config, layer)
        self.attention_post_norm = nn.Identity() if pre else _norm(config)
        self.ffn_norm = _norm(config) if pre else nn.Identity()
        self.ffn_post_norm = nn.Identity() if pre else _norm(config)
        self.ffn: nn.Module = (
            ExpertLayer(
                config.options(),
                hidden_size=config.hidden_size,
                hidden_act=config.hidden_act,
                gated=config.gated_ffn,
                bias=config.use_bias,
                layer_index=layer,
            )
            if config.has_experts(layer)
            else FeedForward(config)
        )
        self.is_routed = config.has_experts(layer)  # adapters may wrap the layer, which then is of another class
        has_shared = config.shared_expert and self.is_routed
        self.shared_ffn = FeedForward(config) if has_shared else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        segments: Segments,
        positions: Int[Tensor, "B T"],
        token_ids: Int[Tensor, "B T"] | None = None,
        global_tokens: Bool[Tensor, "B T"] | None = None,
        output_attentions: bool = False,
    ) -> BlockOutput:
        """Run the block.

        Args:
            hidden: token states.
            segments: which positions form one sequence.
            positions: place of each token, for rotary positions.
            token_ids: vocabulary ids, read by the token-hash router only.
            global_tokens: tokens that every query of their sequence reads (bucket layers).
            output_attentions: return the attention weights too.

        Returns:
            The new states, the weights or None, and the routing or None for a dense layer.
        """
        mixed, weights = self.attention(
            self.attention_norm(hidden),
            segments=segments,
            positions=positions,
            global_tokens=global_tokens,
            output_attentions=output_attentions,
        )
        hidden = self.attention_post_norm(hidden + self.dropout(mixed))
        mixed, routing = self._feed_forward(self.ffn_norm(hidden), segments, token_ids)
        return BlockOutput(self.ffn_post_norm(hidden + self.dropout(mixed)), weights, *(routing or ()))

    def _feed_forward(
        self, hidden: Tensor, segments: Segments, token_ids: Tensor | None
    ) -> tuple[Tensor, RoutingRecord | None]:
        if not self.is_routed:
            return self.ffn(hidden), None
        mixed, routing = self.ffn(hidden, segments=segments, token_ids=token_ids)
        return mixed if self.shared_ffn is None else mixed + self.shared_ffn(hidden), routing


def _norm(config: SortyardConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.use_bias)
