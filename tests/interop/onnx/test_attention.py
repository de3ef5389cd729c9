"""The attention of ONNX files beside the library's own, at lengths on both sides of the crossover."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from sortyard.interop.onnx import attention
from sortyard.interop.onnx.translations import shape_table
from sortyard.ops.bucket_attention import BucketSpec, bucket_attention
from sortyard.ops.bucket_attention.shapes import TreeShape, resolve_shape
from sortyard.ops.lsh_tree import split_directions
from tests.interop.onnx.functions import BOOL, FLOAT, INT64, open_function

SMALL = {"bucket_size": 4, "near_buckets": 2, "beam": 2, "query_chunk": 8, "local_window": 2, "dense_up_to": 16}
SPECS: dict[str, BucketSpec] = {
    "default": BucketSpec(),
    "small": BucketSpec(**SMALL),  # type: ignore[arg-type]
    "keys-mean": BucketSpec(**SMALL | {"split": "keys", "score": "mean"}),  # type: ignore[arg-type]
    "random-globals": BucketSpec(**SMALL | {"power_steps": 0, "num_global_tokens": 3, "local_window": 0}),  # type: ignore[arg-type]
    "two-steps": BucketSpec(**SMALL | {"power_steps": 2, "seed": 5, "num_global_tokens": 0}),  # type: ignore[arg-type]
    "eight-buckets": BucketSpec(num_buckets=8),
    "half-sparse": BucketSpec(target_sparsity=0.5),
}
LONGEST = 400


def make_run(spec: BucketSpec) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    kinds = {"q": FLOAT, "k": FLOAT, "v": FLOAT, "real": BOOL, "lengths": INT64, "table": INT64, "directions": FLOAT}
    session = open_function(
        attention.attend,
        kinds,
        chunk=spec.query_chunk,
        half_width=spec.local_window,
        num_globals=spec.num_global_tokens,
        power_steps=spec.power_steps,
        by_queries=int(spec.split == "queries"),
        spread_coef=float(spec.score == "spread"),
    )
    lengths, table = shape_table(spec, longest=LONGEST)
    directions = split_directions(int(table[:, 0].max()), head_dim=8, seed=spec.seed).numpy()

    def run(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        inputs = {"q": q.numpy(), "k": k.numpy(), "v": v.numpy(), "real": real.numpy()}
        return torch.from_numpy(
            session.run(None, inputs | {"lengths": lengths, "table": table, "directions": directions})[0]
        )

    return run


def draw(length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(4, 2, length, 8, generator=generator) for _ in range(3)]


def pad(length: int) -> Tensor:
    """A full row, one padded at its end, one in front and within, and one of pads alone."""
    real = torch.ones(4, length, dtype=torch.bool)
    real[1, (length + 1) // 2 :] = False
    real[2, : length // 4] = False
    real[2, length // 2] = False
    real[3] = False
    return real


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_outputs_are_those_of_the_library(spec: BucketSpec) -> None:
    run = make_run(spec)
    for length in (1, 2, 16, 17, 64, 65, 100, 232, LONGEST):
        (q, k, v), real = draw(length), pad(length)
        wanted = bucket_attention(q, k, v, spec, key_padding_mask=real)
        torch.testing.assert_close(run(q, k, v, real), wanted, atol=2e-6, rtol=0, msg=lambda m, n=length: f"{n}: {m}")


def test_the_reference_agrees() -> None:
    spec = SPECS["small"]
    (q, k, v), real = draw(90), pad(90)
    wanted = bucket_attention(q, k, v, spec, key_padding_mask=real, backend="reference")
    torch.testing.assert_close(make_run(spec)(q, k, v, real), wanted, atol=2e-6, rtol=0)


def test_a_batch_of_long_and_short_rows_is_as_each_alone() -> None:
    run = make_run(SPECS["small"])
    (q, k, v), real = draw(60), pad(60)
    real[1, 9:] = False  # dense beside trees
    together = run(q, k, v, real)
    for row in range(3):
        at = real[row].nonzero()[:, 0]
        alone = run(*(x[row : row + 1, :, at] for x in (q, k, v)), torch.ones(1, len(at), dtype=torch.bool))
        torch.testing.assert_close(together[row : row + 1, :, at], alone, atol=1e-6, rtol=0)


def test_a_sequence_beyond_the_longest_ends_the_run() -> None:
    q, k, v = draw(LONGEST + 1)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"):
        make_run(SPECS["default"])(q, k, v, torch.ones(4, LONGEST + 1, dtype=torch.bool))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_table_holds_the_shape_of_every_length(spec: BucketSpec) -> None:
    lengths, table = shape_table(spec, longest=LONGEST)
    assert lengths[-1] == LONGEST + 1
    for length in range(1, LONGEST + 1):
        levels, near, beam = table[np.searchsorted(lengths, length, side="right") - 1]
        shape = resolve_shape(spec, length, False)
        if shape is None:
            assert levels == 0
        else:
            assert isinstance(shape, TreeShape)
            assert (levels, near, beam) == (shape.levels, shape.near, shape.beam)
