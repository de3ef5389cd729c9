"""Rotary positions."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sortyard.model.configuration import SortyardConfig

# Their frequencies follow the longest position that is met, which comes to the host for it.
_BY_LENGTH = ("dynamic", "longrope")


class RotaryEmbedding(nn.Module):
    """The rotation angles of positions, by the configuration's `rope_parameters`; it holds no state.

    Types other than "default" (linear, dynamic, yarn, ...) take their frequencies from transformers' own functions.

    Args:
        config: the model's configuration.
        theta: a base of its own, unscaled; None = what `rope_parameters` say.

    Source:
        Su et al. 2021, "RoFormer", equation 15; the two halves of a head are paired as in transformers.
    """

    def __init__(self, config: SortyardConfig, *, theta: float | None = None) -> None:
        super().__init__()
        self.config = config
        assert config.rope_parameters is not None
        parameters: dict[str, Any] = config.rope_parameters
        self.theta: float = parameters["rope_theta"] if theta is None else theta
        self.rope_type: str = parameters["rope_type"] if theta is None else "default"

    def forward(
        self, x: Float[Tensor, "..."], position_ids: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B T K"]]:
        """Cosine and sine of every position's angles.

        Args:
            x: anything of the device and type wanted; angles are always computed in float32 or wider.
            position_ids: place of each token in its own sequence.

        Returns:
            cos and sin.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        longest = int(position_ids.max()) + 1 if self.rope_type in _BY_LENGTH and position_ids.numel() else None
        frequencies, scale = self._frequencies(longest, device=x.device, dtype=wide)
        angles = position_ids[..., None].to(wide) * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)

    @property
    def inv_freq(self) -> Float[Tensor, " half"]:
        """Frequencies of a short sequence."""
        return self._frequencies(None, device=torch.device("cpu"), dtype=torch.float32)[0]

    def _frequencies(
        self, longest: int | None, *, device: torch.device, dtype: torch.dtype
    ) -> tuple[Float[Tensor, " half"], float]:
        """Radians a position, and what cosine and sine are multiplied by."""
        if self.rope_type != "default":
            found, scale = ROPE_INIT_FUNCTIONS[self.rope_type](self.config, device, seq_len=longest)
            return found.to(dtype), scale
        width = self.config.hidden_size // self.config.num_attention_heads
        return self.theta ** (-torch.arange(0, width, 2, device=device, dtype=dtype) / width), 1.0


def rotate(
    x: Float[Tensor, "B H T K"], factors: tuple[Float[Tensor, "B T K"], Float[Tensor, "B T K"]]
) -> Float[Tensor, "B H T K"]:
    """Rotate the pairs (x_i, x_{i + K/2}) of each head by the position's angles.

    Args:
        x: queries or keys by head.
        factors: what `RotaryEmbedding` gives.

    Returns:
        The rotated vectors.
    """
    cos, sin = (factor.unsqueeze(1) for factor in factors)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
