"""Projections around an attention core."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig

from sortyard.model.attention.bucket import BucketCore
from sortyard.model.attention.dense import DenseCore
from sortyard.model.configuration import SortyardConfig
from sortyard.model.rotary import RotaryEmbedding, rotate
from sortyard.ops.segments import Segments


def make_core(config: SortyardConfig, layer: int) -> BucketCore | DenseCore:
    """The core that a layer's configuration asks for."""
    kind = config.attention_of(layer)
    if kind == "bucket":
        return BucketCore(config.options(), causal=config.causal)
    return DenseCore(causal=config.causal, window=config.sliding_window if kind == "sliding" else None)


class SelfAttention(nn.Module):
    """Query, key, value and output projections, rotary positions and a core.

    `config` is set by the model: its attention implementation, read anew in every pass, decides. "sdpa" is the fast
    path of the core, "eager" the same from materialised weights. A layer without one is fast.
    """

    config: PreTrainedConfig | None = None

    def __init__(self, config: SortyardConfig, layer: int) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.use_bias
        self.head_width = width // config.num_attention_heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.o_proj = nn.Linear(width, width, bias=bias)
        self.core = make_core(config, layer)
        self.dropout_prob = config.attention_probs_dropout_prob
        self.rotary_emb = _rotary_embedding(config, layer)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        segments: Segments,
        positions: Int[Tensor, "B T"],
        global_tokens: Bool[Tensor, "B T"] | None = None,
        output_attentions: bool = False,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H T T"] | None]:
        """Attend within each sequence.

        Args:
            hidden: token states.
            segments: which positions form one sequence.
            positions: place of each token, for rotary positions.
            global_tokens: tokens that every query of their sequence reads (bucket layers).
            output_attentions: compute through materialised weights, the slow reference path, and return them.

        Returns:
            The new states, and the weights or None.
        """
        q, k, v = self.projections(hidden, positions)
        weights = None
        is_eager = self.config is not None and self.config._attn_implementation == "eager"
        if output_attentions or is_eager:
            weights = self.core.weights(q, k, segments=segments, global_tokens=global_tokens).to(v.dtype)
            mixed = torch.dropout(weights, self.dropout_prob, self.training) @ v
        else:
            dropout_p = self.dropout_prob if self.training else 0.0
            mixed = self.core(q, k, v, segments=segments, dropout_p=dropout_p, global_tokens=global_tokens)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), weights if output_attentions else None

    def projections(
        self, hidden: Float[Tensor, "B T D"], positions: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"], Float[Tensor, "B H T K"]]:
        """Queries, keys and values by head, positions rotated in.

        There are as many heads as the projections give: under tensor parallelism those of this process.
        """
        heads = (-1, self.head_width)
        q, k, v = (
            proj(hidden).unflatten(-1, heads).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.rotary_emb is not None:
            factors = self.rotary_emb(q, positions)
            q, k = rotate(q, factors), rotate(k, factors)
        return q, k, v


def _rotary_embedding(config: SortyardConfig, layer: int) -> RotaryEmbedding | None:
    if config.position_embedding_type != "rope":
        return None
    return RotaryEmbedding(config, theta=config.sliding_rope_theta if config.attention_of(layer) == "sliding" else None)
