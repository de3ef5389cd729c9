"""What stands between the encoder and a projection onto a vocabulary or classes."""

from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from sortyard.model.configuration import SortyardConfig


class PredictionHead(nn.Module):
    """Dense, activation, norm."""

    def __init__(self, config: SortyardConfig, *, width: int, activation: str, norm: bool = True) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, width, bias=config.use_bias)
        self.activation = ACT2FN[activation]
        self.norm = nn.LayerNorm(width, eps=config.norm_eps, bias=config.use_bias) if norm else nn.Identity()

    def forward(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... W"]:
        """Transform each state by itself."""
        out: Tensor = self.norm(self.activation(self.dense(hidden)))
        return out


def classifier_head(config: SortyardConfig) -> PredictionHead:
    """The layers before a sequence classifier's projection."""
    return PredictionHead(
        config, width=config.hidden_size, activation=config.classifier_activation, norm=config.classifier_norm
    )


def token_head(config: SortyardConfig) -> nn.Module:
    """The same before the projection of every token, where the configuration asks for it."""
    return classifier_head(config) if config.token_head else nn.Identity()
