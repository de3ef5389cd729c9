"""The bucket core: exact near keys, summaries of far ones."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sortyard.model.attention.options import AttentionOptions
from sortyard.ops.bucket_attention import BucketSpec, bucket_attention, bucket_weights, expected_sparsity
from sortyard.ops.segments import Segments


class BucketCore(nn.Module):
    """Bucket attention, or dense attention where that is faster or asked for."""

    def __init__(self, options: AttentionOptions, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self._specs = {device: options.to_spec(device=device) for device in ("cpu", "cuda")}
        self._attend = bucket_attention

    def spec_on(self, device: torch.device) -> BucketSpec:
        """The settings on a device."""
        return self._specs["cpu" if device.type == "cpu" else "cuda"]

    def stay_out_of_graphs(self, stays: bool) -> None:
        """Run between the graphs of a compiled layer, as kernels of its own, whose launches follow the lengths."""
        self._attend = torch.compiler.disable(bucket_attention) if stays else bucket_attention

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
        attend = bucket_attention if segments.is_traced else self._attend
        return attend(
            q,
            k,
            v,
            self.spec_on(q.device),
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
        spec = self.spec_on(q.device)
        return bucket_weights(q, k, spec, causal=self.causal, segments=segments, global_tokens=global_tokens)

    def sparsity(self, segments: Segments) -> float:
        """Share of the batch's query-key pairs that are not computed; 0 for a batch of pads."""
        spec = self.spec_on(segments.ids.device)
        pairs = sum(n * n for n in segments.lengths)
        kept = sum(n * n * (1 - expected_sparsity(spec, n, causal=self.causal)) for n in segments.lengths)
        return 1 - kept / pairs if pairs else 0.0
