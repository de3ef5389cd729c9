"""The bucket core: exact near keys, summaries of far ones."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sortyard.model.attention.options import AttentionOptions
from sortyard.ops.bucket_attention import BucketSpec, bucket_attention, bucket_weights, expected_sparsity
from sortyard.ops.segments import Segments

# Kernels of their own, whose launches follow the lengths: not for graphs that are compiled once for many batches.
_between_graphs = torch.compiler.disable(bucket_attention)


class BucketCore(nn.Module):
    """Bucket attention, or dense attention where that is faster or asked for.

    Attributes:
        is_between_graphs: Whether attention runs between the graphs of a layer that is compiled for training.
    """

    def __init__(self, options: AttentionOptions, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self._specs = {device: options.to_spec(device=device) for device in ("cpu", "cuda")}
        self.is_between_graphs = False

    def spec_on(self, device: torch.device) -> BucketSpec:
        """The settings on a device."""
        return self._specs["cpu" if device.type == "cpu" else "cuda"]

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
        attend = _between_graphs if self.is_between_graphs and not segments.is_traced else bucket_attention
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
