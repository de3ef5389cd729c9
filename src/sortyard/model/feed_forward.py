"""The dense feed-forward layer."""

from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from sortyard.model.configuration import SortyardConfig


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) with gate and up stacked in `gate_up_proj`."""

    def __init__(self, config: SortyardConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.use_bias
        self.gated = config.gated_ffn
        if self.gated:
            self.gate_up_proj = nn.Linear(width, 2 * inner, bias=bias)
        else:
            self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Apply to every token by itself."""
        if self.gated:
            gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
            inner = self.activation(gate) * up
        else:
            inner = self.activation(self.up_proj(hidden))
        out: Tensor = self.down_proj(inner)
        return out
