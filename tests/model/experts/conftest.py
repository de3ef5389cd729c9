"""Small expert layers and awkward batches."""

from collections.abc import Callable

import pytest
import torch

from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.options import ExpertOptions
from sortyard.ops.segments import Segments, make_segments

WIDTH = 16


@pytest.fixture
def make_layer() -> Callable[..., ExpertLayer]:
    """Build a layer of width 16 with visible weights; keywords are `ExpertOptions`, and gated and bias."""

    def make(*, gated: bool = False, bias: bool = False, dtype: torch.dtype = torch.float32, **options) -> ExpertLayer:
        torch.manual_seed(0)
        settings = ExpertOptions(**{"moe_intermediate_size": 24, **options})
        layer = ExpertLayer(settings, hidden_size=WIDTH, hidden_act="gelu", gated=gated, bias=bias)
        layer.reset_parameters(0.3)
        return layer.to(dtype)

    return make


@pytest.fixture
def rows() -> Callable[..., Segments]:
    """Build the segments of rows with the given numbers of real tokens, padded on the right."""

    def make(*lengths: int, length: int) -> Segments:
        mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
        return make_segments(len(lengths), length, key_padding_mask=mask, device="cpu")

    return make
