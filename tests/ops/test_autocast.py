"""Codes, choices, weights and softmax stay in their own precision wherever autocast is switched on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sortyard.ops import BucketSpec, bucket_attention, bucket_relation, lsh_codes, make_segments
from sortyard.ops.bucket_attention import bucket_weights, dense_weights

TREE = BucketSpec(bucket_size=8, query_chunk=16, near_buckets=2, beam=3, local_window=5, dense_up_to=20)
HASHES = ("gray", "cross_polytope", "e2lsh", "kmeans", "random", "sign_sum")
SPECS = {"tree": TREE} | {
    name: BucketSpec(selection="rounds", hash=name, bucket_size=6, local_window=3, dense_up_to=20) for name in HASHES
}
NAMES = pytest.mark.parametrize("name", SPECS)


def draw(length: int = 150) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(3, 2, 2, length, 8, generator=torch.Generator().manual_seed(0)).unbind()


def assert_autocast_changes_nothing(run: Callable[[], Tensor]) -> None:
    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    assert found.dtype == plain.dtype
    assert torch.equal(found, plain)


@pytest.mark.parametrize("name", HASHES)
def test_codes(name: str) -> None:
    assert_autocast_changes_nothing(lambda: lsh_codes(draw()[0], SPECS[name]))


@NAMES
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_attention(name: str, backend: str) -> None:
    q, k, v = draw()
    assert_autocast_changes_nothing(lambda: bucket_attention(q, k, v, SPECS[name], backend=backend))


def test_short_sequences_are_as_precise_alone_as_beside_long_ones() -> None:
    q, k, v = draw()
    mask = torch.arange(150) < torch.tensor([[150], [15]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = bucket_attention(q, k, v, TREE, key_padding_mask=mask)[1:, :, :15]
        alone = bucket_attention(*(x[1:, :, :15] for x in (q, k, v)), TREE)
    assert together.dtype == alone.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@NAMES
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_relation(name: str, backend: str) -> None:
    q, k, _ = draw()
    assert_autocast_changes_nothing(lambda: bucket_relation(q, k, SPECS[name], backend=backend).near)


@NAMES
def test_weights(name: str) -> None:
    q, k, _ = draw()
    segments = make_segments(2, 150, device="cpu")
    assert_autocast_changes_nothing(lambda: bucket_weights(q, k, SPECS[name], segments=segments))
    assert_autocast_changes_nothing(lambda: dense_weights(q, k, segments=segments))


@pytest.mark.parametrize(("name", "dropout_p"), [("tree", 0.0), *((name, p) for name in HASHES for p in (0.0, 0.3))])
def test_gradients(name: str, dropout_p: float) -> None:
    def differentiate(*, is_within: bool) -> Tensor:
        leaves = [x.requires_grad_() for x in draw()]
        torch.manual_seed(0)  # of dropped weights
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = bucket_attention(*leaves, SPECS[name], backend="cpu", dropout_p=dropout_p)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_within):
            gradients = torch.autograd.grad(out, leaves, out.detach())
        return torch.stack([out.detach(), *gradients])

    with torch.random.fork_rng(devices=[]):
        assert torch.equal(differentiate(is_within=True), differentiate(is_within=False))
