"""Hash rounds in one autograd function: blocks, extremes, dropout, strict causality, precision and what it keeps."""

import pytest
import torch
from torch import Tensor

from sortyard.ops import BucketSpec, bucket_attention, bucket_relation, lsh_codes
from sortyard.ops.bucket_attention import hash_rounds, round_parts, round_pass
from sortyard.ops.bucket_attention.reference import attend_relation
from sortyard.ops.lsh_hash import round_codes

ROUNDS = BucketSpec(selection="rounds", bucket_size=6, local_window=3, num_hash_rounds=3, dense_up_to=20)
MULTISET = BucketSpec(selection="rounds", bucket_size=6, local_window=3, multiset=True, dense_up_to=20)
CAUSAL_HASHES = ("gray", "cross_polytope", "e2lsh", "random", "sign_sum")
BOTH_WAYS = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def draw(length: int, *, width: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, 2, 2, length, width, dtype=torch.float64, generator=generator)
    return [x.to(dtype).requires_grad_() for x in drawn]


def values_and_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def assert_equals_the_relation(inputs: list[Tensor], spec: BucketSpec, *, causal: bool) -> None:
    q, k, v = inputs
    dense = attend_relation(q, k, v, bucket_relation(q, k, spec, causal=causal))
    fast = bucket_attention(q, k, v, spec, causal=causal)
    pairs = zip(values_and_gradients(fast, inputs), values_and_gradients(dense, inputs), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@BOTH_WAYS
@pytest.mark.parametrize("spec", [ROUNDS, MULTISET], ids=["once", "multiset"])
@pytest.mark.parametrize("logits", [1, 500, 1 << 30])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, logits: int, spec: BucketSpec, causal: bool) -> None:
    monkeypatch.setattr(round_pass, "_BLOCK_LOGITS", logits)
    assert_equals_the_relation(draw(100), spec, causal=causal)


@BOTH_WAYS
def test_large_chunks_are_split(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    monkeypatch.setattr(hash_rounds, "_MOST_QUERIES", 4)
    monkeypatch.setattr(round_parts, "_MOST_LOCAL_CHUNK", 5)
    spec = BucketSpec(selection="rounds", target_sparsity=0.4, local_window=9, dense_up_to=20)
    q, k, _ = inputs = draw(107)
    assert_equals_the_relation(inputs, spec, causal=causal)
    literal = bucket_relation(q, k, spec, causal=causal, backend="reference")
    assert torch.equal(bucket_relation(q, k, spec, causal=causal).near, literal.near)


@BOTH_WAYS
@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0, 1e4])
def test_flat_and_steep_softmax(scale: float, causal: bool) -> None:
    q, k, v = draw(100)
    with torch.no_grad():
        q.mul_(scale)
        k.mul_(scale)
    out = bucket_attention(q, k, v, ROUNDS, causal=causal)
    relation = bucket_relation(q, k, ROUNDS, causal=causal)
    torch.testing.assert_close(out, attend_relation(q, k, v, relation), rtol=0, atol=1e-12 * max(1.0, scale**2))
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.square().sum(), (q, k, v)))


@BOTH_WAYS
def test_one_code_for_all_and_no_common_code(causal: bool) -> None:
    q, k, v = draw(100)
    same = [q, torch.zeros_like(k).requires_grad_(), v]
    apart = [q, (-q).detach().requires_grad_(), v]
    for inputs in (same, apart):
        assert_equals_the_relation(inputs, ROUNDS, causal=causal)


def test_first_queries_without_any_key_in_their_code() -> None:
    q = torch.eye(2, 4, dtype=torch.float64)[None, None].requires_grad_()
    k, v = (-q).detach().requires_grad_(), torch.ones_like(q).requires_grad_()
    spec = BucketSpec(selection="rounds", hash="cross_polytope", bucket_size=1, local_window=0, dense_up_to=0)
    assert_equals_the_relation([q, k, v], spec, causal=True)


@BOTH_WAYS
@pytest.mark.parametrize("global_tokens", [0, 1, 9])
def test_no_window_and_any_number_of_global_tokens(global_tokens: int, causal: bool) -> None:
    spec = BucketSpec(
        selection="rounds", bucket_size=6, local_window=0, num_global_tokens=global_tokens, dense_up_to=20
    )
    assert_equals_the_relation(draw(90), spec, causal=causal)


@pytest.mark.parametrize("name", CAUSAL_HASHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_future_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    spec = BucketSpec(selection="rounds", hash=name, bucket_size=7, local_window=5, dense_up_to=20)
    inputs = draw(300, width=32, dtype=dtype)
    before = bucket_attention(*inputs, spec, causal=True)
    for cut in (1, 17, 100, 255, 299):
        edited = [x.detach().clone() for x in inputs]
        for seed, x in enumerate(edited):
            noise = torch.randn(x[..., cut:, :].shape, generator=torch.Generator().manual_seed(seed + cut))
            x[..., cut:, :] = 3 * noise.to(dtype) + 1
        after = bucket_attention(*edited, spec, causal=True)
        assert torch.equal(before[..., :cut, :], after[..., :cut, :])
        assert not torch.equal(before[..., cut:, :], after[..., cut:, :])


@BOTH_WAYS
def test_dropout_has_exact_gradients(causal: bool) -> None:
    def attend(*inputs: Tensor) -> Tensor:
        torch.manual_seed(3)
        return bucket_attention(*inputs, ROUNDS, causal=causal, dropout_p=0.4)[0, 0, ::5]

    with torch.random.fork_rng():
        inputs = draw(24, width=2)
        assert torch.autograd.gradcheck(attend, inputs, eps=1e-7, atol=1e-6)


@BOTH_WAYS
def test_dropout_drops_its_share_and_keeps_the_mean(causal: bool) -> None:
    q, k, v = draw(200)
    expected = bucket_attention(q, k, v, ROUNDS, causal=causal)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack([bucket_attention(q, k, v, ROUNDS, causal=causal, dropout_p=0.3) for _ in range(200)])
    assert not torch.equal(drawn[0], drawn[1])
    assert (drawn.mean(0) - expected).abs().mean() < 4 * drawn.std(0).mean() / 200**0.5
    zero = (drawn[:, :, :, 0] == 0).all(-1).double().mean()  # causal: the first token reads itself only
    assert zero == pytest.approx(0.3, abs=0.05) if causal else zero == 0


@BOTH_WAYS
def test_bfloat16_errs_by_rounding_only(causal: bool) -> None:
    q, k, v = inputs = draw(300, width=32, dtype=torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = values_and_gradients(attend_relation(*wide, bucket_relation(q, k, ROUNDS, causal=causal)), wide)
    ours = values_and_gradients(bucket_attention(q, k, v, ROUNDS, causal=causal), inputs)
    for found, truth in zip(ours, exact, strict=True):
        assert (found.double() - truth).norm() < 2**-8 * truth.norm()


@BOTH_WAYS
def test_layout_of_the_inputs_does_not_matter(causal: bool) -> None:
    inputs = draw(100)
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs]
    ours, theirs = (
        values_and_gradients(bucket_attention(*tensors, ROUNDS, causal=causal), tensors)
        for tensors in (inputs, strided)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@BOTH_WAYS
def test_keeps_nothing_but_inputs_output_and_lse(causal: bool) -> None:
    q, k, v = draw(300)
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        bucket_attention(q, k, v, ROUNDS, causal=causal)
    assert sum(kept) == 4 * q.numel() + q.numel() // q.shape[-1]


@pytest.mark.parametrize(
    ("name", "causal"),
    [(name, causal) for name in ("gray", "cross_polytope", "e2lsh", "random", "sign_sum") for causal in (False, True)]
    + [("kmeans", False)],
)
def test_codes_of_all_rounds_equal_those_of_one(name: str, causal: bool) -> None:
    q, k, _ = draw(50)
    spec = BucketSpec(selection="rounds", hash=name)
    real = torch.arange(50) < torch.tensor([[50], [31]])
    options = {"keys": k, "real": real, "causal": causal}
    together = round_codes(q, spec, rounds=range(3), **options)
    for index, codes in enumerate(together):
        alone = lsh_codes(q, spec, round_index=index, **options)
        assert torch.equal(codes.transpose(1, 2)[real], alone.transpose(1, 2)[real])
