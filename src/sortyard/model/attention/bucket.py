"""The bucket core: exact near keys, summaries of far ones."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sortyard.ops.bucket_attention import BucketSpec, bucket_attention, bucket_weights, expected_sparsity
from sortyard.ops.segments import Segments


class BucketCore(nn.Module):
    """Bucket attention with the settings of one `BucketSpec`."""

    def __init__(self, spec: BucketSpec, *, causal: bool) -> None:
        super().__init__()
        self.spec = spec
        self.causal = causal

    def forward(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B H T K"],
        v: Float[Tensor, "B H T K"],
        *,
        segments: Segments,
        dropout_p: float,
        global_tokens: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B H T K"]:
        """Attend; zeros at pads."""
        return bucket_attention(
            q,
            k,
            v,
            self.spec,
            causal=self.causal,
            segments=segments,
            dropout_p=dropout_p,
            global_tokens=global_tokens,
        )

    def weights(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B H T K"],
        *,
        segments: Segments,
        global_tokens: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B H T T"]:
        """Token-to-token weights from the relation, a summary's weight spread over the keys of its branch."""
        return bucket_weights(q, k, self.spec, causal=self.causal, segments=segments, global_tokens=global_tokens)

    def sparsity(self, segments: Segments) -> float:
        """Share of the batch's query-key pairs that are not computed; 0 for a batch of pads."""
        pairs = sum(n * n for n in segments.lengths)
        kept = sum(n * n * (1 - expected_sparsity(self.spec, n, causal=self.causal)) for n in segments.lengths)
        return 1 - kept / pairs if pairs else 0.0
