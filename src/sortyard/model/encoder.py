"""The stack of blocks and what it collects on the way."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sortyard.model.attention.bucket import BucketCore
from sortyard.model.block import Block, BlockOutput
from sortyard.model.configuration import SortyardConfig
from sortyard.model.experts.routing import RoutingRecord
from sortyard.ops.segments import Segments


@dataclass
class EncoderTrace:
    """What the blocks reported, layer by layer.

    Args:
        num_expert_layers: of the whole model, of which a pipeline's stage has a few.
    """

    num_expert_layers: int
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)
    routing: list[RoutingRecord] = field(default_factory=list)

    @property
    def aux_loss(self) -> Float[Tensor, ""] | None:
        """Balance loss, the mean over expert layers."""
        if not self.routing:
            return None
        return _stack([record.balance for record in self.routing]).sum() / self.num_expert_layers

    @property
    def expert_loads(self) -> Float[Tensor, "L E"] | None:
        """Routed copies per expert layer and expert."""
        return _stack([record.loads for record in self.routing]) if self.routing else None


def _stack(values: list[Tensor]) -> Tensor:
    """One row a layer, on the device of the first: layers may be spread over several."""
    return torch.stack([value.to(values[0].device) for value in values])


class Encoder(nn.Module):
    """Blocks in order, then the final norm of a pre-norm model."""

    def __init__(self, config: SortyardConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.num_expert_layers = sum(config.has_experts(layer) for layer in range(config.num_hidden_layers))
        self.num_bucket_layers = sum(isinstance(module, BucketCore) for module in self.modules())
        has_norm = config.final_norm and config.norm_position == "pre"
        self.final_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.use_bias) if has_norm else nn.Identity()
        )

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        segments: Segments,
        positions: Int[Tensor, "B T"],
        token_ids: Int[Tensor, "B T"] | None = None,
        global_tokens: Bool[Tensor, "B T"] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[Float[Tensor, "B T D"], EncoderTrace]:
        """Run all blocks.

        Args:
            hidden: embedded tokens.
            segments: which positions form one sequence.
            positions: place of each token, for rotary positions.
            token_ids: vocabulary ids, read by the token-hash router only.
            global_tokens: tokens that every query of their sequence reads (bucket layers).
            output_attentions: collect attention weights.
            output_hidden_states: collect the states before each block and after the last.

        Returns:
            The final states and the trace.
        """
        trace = EncoderTrace(self.num_expert_layers)
        for layer in self.layers:
            if output_hidden_states:
                trace.hidden_states.append(hidden)
            output = BlockOutput(  # again: a checkpoint makes a plain tuple of it
                *layer(
                    hidden,
                    segments=segments,
                    positions=positions,
                    token_ids=token_ids,
                    global_tokens=global_tokens,
                    output_attentions=output_attentions,
                )
            )
            hidden = output.hidden
            if output.attention is not None:
                trace.attentions.append(output.attention)
            if output.routing is not None:
                trace.routing.append(output.routing)
        hidden = self.final_norm(hidden)
        if output_hidden_states:
            trace.hidden_states.append(hidden)
        return hidden, trace

    def sparsity(self, segments: Segments) -> float | None:
        """Mean share of query-key pairs the bucket layers leave out of this batch; None without bucket layers."""
        values = [module.sparsity(segments) for module in self.modules() if isinstance(module, BucketCore)]
        return sum(values) / len(values) if values else None
