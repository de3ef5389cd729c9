"""The dense core: exact softmax attention, over everything or over a sliding window."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sortyard.ops.bucket_attention import dense_attention, dense_weights
from sortyard.ops.segments import Segments


class DenseCore(nn.Module):
    """Every query attends every visible key of its sequence, or those at most `window` tokens away.

    It takes `global_tokens` as the bucket core does and has no use for them: a sliding layer is a checkpoint's own,
    whose window holds no other token.
    """

    def __init__(self, *, causal: bool, window: int | None) -> None:
        super().__init__()
        self.causal = causal
        self.window = window

    def forward(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B H T K"],
        v: Float[Tensor, "B H T K"],
        *,
        segments: Segments,
        dropout_p: float,
        global_tokens: Bool[Tensor, "B T"] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "B H T K"]:
        """Attend; zeros at pads."""
        return dense_attention(q, k, v, segments=segments, causal=self.causal, window=self.window, dropout_p=dropout_p)

    def weights(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B H T K"],
        *,
        segments: Segments,
        global_tokens: Bool[Tensor, "B T"] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "B H T T"]:
        """The weights that `forward` multiplies the values with, materialised."""
        return dense_weights(q, k, segments=segments, causal=self.causal, window=self.window)
