"""The compiled kernels: strides, precisions, poisoned memory, threads, and what happens where they cannot be built."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sortyard.ops import BucketSpec, bucket_attention, bucket_relation, make_segments
from sortyard.ops.bucket_attention import available_backends, backend, choose_backend
from sortyard.ops.bucket_attention.compiled import compiled_tree_attention, library, why_not
from sortyard.ops.bucket_attention.compiled.problem import make_problem
from sortyard.ops.bucket_attention.groups import Group, make_groups
from sortyard.ops.bucket_attention.inputs import check_inputs
from sortyard.ops.bucket_attention.reference import attend_relation

needs_kernels = pytest.mark.skipif(why_not() is not None, reason=f"no compiled kernels here: {why_not()}")
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
SPEC = BucketSpec(bucket_size=8, query_chunk=16, near_buckets=2, beam=3, local_window=5, dense_up_to=20)


def draw(length: int, *, width: int = 16, dtype: torch.dtype = torch.float32, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length + width)
    return [x.to(dtype) for x in torch.randn(3, batch, 2, length, width, generator=generator).unbind()]


def gradients(q: Tensor, k: Tensor, v: Tensor, spec: BucketSpec, **options: object) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = bucket_attention(*leaves, spec, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@needs_kernels
@CAUSAL
@pytest.mark.parametrize("width", [1, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160])
def test_head_widths(width: int, causal: bool) -> None:
    q, k, v = draw(130, width=width, dtype=torch.float64)
    relation = bucket_relation(q, k, SPEC, causal=causal, backend="compiled")
    out = bucket_attention(q, k, v, SPEC, causal=causal, backend="compiled")
    torch.testing.assert_close(out, attend_relation(q, k, v, relation), rtol=0, atol=1e-12)


@needs_kernels
@CAUSAL
@pytest.mark.parametrize("chunk", [1, 7, 63, 65, 100, 1000])
def test_chunks_of_any_size(chunk: int, causal: bool) -> None:
    spec = BucketSpec(bucket_size=8, query_chunk=chunk, near_buckets=2, beam=3, local_window=5, dense_up_to=20)
    q, k, v = draw(210, dtype=torch.float64)
    ours = gradients(q, k, v, spec, causal=causal, backend="compiled")
    for a, b in zip(ours, gradients(q, k, v, spec, causal=causal, backend="cpu"), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@needs_kernels
@CAUSAL
def test_views_of_another_layout_give_the_same(causal: bool) -> None:
    q, k, v = draw(150, dtype=torch.float64)
    plain = gradients(q, k, v, SPEC, causal=causal, backend="compiled")
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    spread = [F.pad(x, (0, 16))[..., ::2] for x in (q, k, v)]
    for x, wide in zip((q, k, v), spread, strict=True):
        wide[..., : x.shape[-1]].copy_(x)
    for views in (turned, [x[..., : q.shape[-1]] for x in spread]):
        for a, b in zip(plain, gradients(*views, SPEC, causal=causal, backend="compiled"), strict=True):
            assert torch.equal(a, b)


@needs_kernels
@CAUSAL
def test_the_number_of_threads_changes_no_bit(causal: bool) -> None:
    inputs = draw(300)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(gradients(*inputs, SPEC, causal=causal, backend="compiled"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_kernels
@CAUSAL
def test_pads_full_of_nan_change_nothing(causal: bool) -> None:
    q, k, v = draw(150)
    mask = torch.arange(150) < torch.tensor([150, 97])[:, None]
    clean = gradients(q, k, v, SPEC, causal=causal, key_padding_mask=mask, backend="compiled")
    poisoned = [x.masked_fill(~mask[:, None, :, None], torch.nan) for x in (q, k, v)]
    for a, b in zip(
        clean, gradients(*poisoned, SPEC, causal=causal, key_padding_mask=mask, backend="compiled"), strict=True
    ):
        assert torch.equal(a, b)


@needs_kernels
def test_keys_that_are_no_numbers_end_in_outputs_that_are_none() -> None:
    q, k, v = draw(200)
    k[0, 0, ::3] = torch.nan
    k[0, 1, 5], k[1, 0, 5] = torch.inf, -torch.inf
    out = bucket_attention(q, k, v, SPEC, backend="compiled")
    assert out[0, 0].isnan().all()
    assert out[1, 1].isfinite().all()


@needs_kernels
@CAUSAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_error_is_within_twice_that_of_dense_attention(dtype: torch.dtype, causal: bool) -> None:
    q, k, v = draw(600, width=64, dtype=dtype)
    wide = [x.double() for x in (q, k, v)]
    relation = bucket_relation(q, k, SPEC, causal=causal, backend="compiled")
    exact_sparse = attend_relation(*wide, relation)
    exact_dense = F.scaled_dot_product_attention(*wide, is_causal=causal)
    ours = (bucket_attention(q, k, v, SPEC, causal=causal, backend="compiled").double() - exact_sparse).norm()
    dense = (F.scaled_dot_product_attention(q, k, v, is_causal=causal).double() - exact_dense).norm()
    # Dense outputs average more values and so are smaller; errors are compared in relation to the outputs.
    assert ours / exact_sparse.norm() <= 2 * dense / exact_dense.norm()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_gradients_in_low_precision(dtype: torch.dtype) -> None:
    q, k, v = draw(600, width=64, dtype=dtype)
    ours = gradients(q, k, v, SPEC, backend="compiled")
    exact = gradients(*(x.double() for x in (q, k, v)), SPEC, backend="compiled")
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip(ours, exact, strict=True):
        assert (a.double() - b).norm() / b.norm() < tolerance


@needs_kernels
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far-from-the-origin"])
def test_choice_in_float32_is_that_in_float64(offset: float) -> None:
    q, k, _ = draw(512, width=64)
    k = k + offset
    spec = BucketSpec(dense_up_to=0)
    ours = bucket_relation(q, k, spec, backend="compiled").near
    exact = bucket_relation(q.double(), k.double(), spec, backend="cpu").near
    assert (ours != exact).sum() <= 2e-3 * exact.sum()


@needs_kernels
def test_rows_in_pieces_are_copied() -> None:
    q, k, v = draw(150, dtype=torch.float64)
    pieces = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (q, k, v)]
    relation = bucket_relation(*pieces[:2], SPEC, backend="compiled")
    assert torch.equal(relation.near, bucket_relation(q, k, SPEC, backend="compiled").near)
    for a, b in zip(
        gradients(q, k, v, SPEC, backend="compiled"), gradients(*pieces, SPEC, backend="compiled"), strict=True
    ):
        assert torch.equal(a, b)


@needs_kernels
@CAUSAL
def test_a_default_device_changes_nothing(causal: bool) -> None:
    q, k, v = draw(150)
    plain = bucket_attention(q, k, v, SPEC, causal=causal, backend="compiled")
    with torch.device("meta"):
        problem = make_problem(q, SPEC, group=one_group(q, causal=causal), causal=causal)
        out = compiled_tree_attention(q, k, v, SPEC, group=one_group(q, causal=causal), causal=causal, dropout_p=0.0)
    assert problem.lengths.device.type == "cpu"
    assert torch.equal(plain, out)


def one_group(q: Tensor, *, causal: bool) -> Group:
    with torch.device("cpu"):
        segments = make_segments(q.shape[0], q.shape[2], device="cpu")
        return make_groups(segments, SPEC, causal=causal, global_tokens=None)[0]


@needs_kernels
def test_a_forked_process_does_not_hang() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    code = (
        "import os, signal, torch\n"
        "from sortyard.ops import BucketSpec, bucket_attention\n"
        "torch.set_num_threads(3)\n"
        "q, k, v = torch.randn(3, 1, 4, 300, 16).unbind()\n"
        "def run(): return bucket_attention(q, k, v, BucketSpec(dense_up_to=0), backend='compiled')\n"
        "here = run()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(20)\n"
        "    os._exit(0 if torch.equal(run(), here) else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q, k, v.bfloat16()), "v has dtype torch.bfloat16, but q has torch.float32"),
        (lambda q, k, v: (q, k[:, :1], v), "k has shape"),
        (lambda q, k, v: (q, k, v[:, :, :-1]), "v has shape"),
        (lambda q, k, v: (q.int(), k.int(), v.int()), "q is torch.int32; it must be one of float32"),
        (lambda q, k, v: (q[0], k[0], v[0]), "q has shape"),
    ],
    ids=["dtype", "heads", "length", "integers", "no-batch"],
)
def test_tensors_that_do_not_fit_are_refused(change: Callable[..., tuple[Tensor, ...]], message: str) -> None:
    q, k, v = change(*draw(150))
    with pytest.raises(ValueError, match=message):
        check_inputs(q, k=k, v=v)


@needs_kernels
def test_large_logits_do_not_overflow() -> None:
    q, k, v = draw(200, width=64)
    for a in gradients(100 * q, 100 * k, v, SPEC, backend="compiled"):
        assert a.isfinite().all()


@needs_kernels
def test_dropout_takes_plain_torch() -> None:
    q, k, v = draw(150)
    torch.manual_seed(0)
    ours = bucket_attention(q, k, v, SPEC, dropout_p=0.5, backend="compiled")
    torch.manual_seed(0)
    assert torch.equal(ours, bucket_attention(q, k, v, SPEC, dropout_p=0.5, backend="cpu"))


@needs_kernels
def test_a_second_derivative_is_refused() -> None:
    q, k, v = (x.requires_grad_() for x in draw(150))
    (slope,) = torch.autograd.grad(
        bucket_attention(q, k, v, SPEC, backend="compiled").square().sum(), q, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Nothing built or chosen yet, and an empty cache."""
    caches = (library.load_library, library.why_not, backend._why_not_compiled)
    for cached in caches:
        cached.cache_clear()
    monkeypatch.setenv("SORTYARD_CACHE", str(tmp_path / "cache"))
    yield monkeypatch
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def test_a_cache_that_others_can_write_to_is_not_trusted(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    fresh.setenv("SORTYARD_CACHE", str(folder))
    assert choose_backend() == "cpu"
    assert why_not() is not None


def test_a_compiler_with_arguments(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("CXX", "no-such-compiler -O1")
    assert "no-such-compiler -O1" in str(why_not())
    fresh.setenv("CXX", "env c++")
    assert library.find_compiler()[1:] == ("c++",)


def test_no_compiler_means_plain_torch(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("CXX", "no-such-compiler")
    assert available_backends() == ("cpu",)
    assert choose_backend() == "cpu"
    with pytest.raises(ValueError, match=r"backend is 'compiled'.*no C\+\+ compiler found \(no-such-compiler\)"):
        choose_backend("compiled")


def test_a_compiler_that_fails_means_plain_torch(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "broken-c++"
    fake.write_text("#!/bin/sh\necho 'internal error: out of luck' >&2\nexit 1\n")
    fake.chmod(0o755)
    fresh.setenv("CXX", str(fake))
    assert choose_backend() == "cpu"
    assert "out of luck" in str(why_not())
    assert not list((tmp_path / "cache").glob("*.so"))


def test_a_cache_that_cannot_be_written_means_plain_torch(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    fresh.setenv("SORTYARD_CACHE", str(blocked / "cache"))
    assert choose_backend() == "cpu"


@needs_kernels
def test_a_damaged_build_is_named(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = library._cached_path(library.find_compiler())
    path.write_bytes(b"not a library")
    path.chmod(0o700)
    assert choose_backend() == "cpu"
    assert f"{path} does not load" in str(why_not())


def test_the_environment_chooses_and_the_argument_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORTYARD_BACKEND", "cpu")
    assert choose_backend() == "cpu"
    assert choose_backend("reference") == "reference"
    monkeypatch.setenv("SORTYARD_BACKEND", "gpu")
    with pytest.raises(ValueError, match="SORTYARD_BACKEND is 'gpu'; choose one of reference, cpu, compiled, triton"):
        choose_backend()


@needs_kernels
def test_graph_capture_gets_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend() == "compiled"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose_backend() == "cpu"


def test_triton_kernels_are_refused_where_nothing_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"backend is 'triton', which needs triton and a CUDA device, and .* on cpu"):
        choose_backend("triton")


CAPTURED = """
import torch
from sortyard.ops import BucketSpec, bucket_attention
spec = BucketSpec(bucket_size=4, query_chunk=8, near_buckets=1, beam=2, local_window=1, dense_up_to=8)
inputs = torch.randn(3, 1, 2, 100, 8).unbind()
captured = torch.compile(lambda q, k, v: bucket_attention(q, k, v, spec), backend="eager", fullgraph=True)
assert torch.equal(captured(*inputs), bucket_attention(*inputs, spec))
"""


def test_a_captured_call_has_buckets_too() -> None:
    # In a process of its own: the shape checks of the tests refuse the tracer's symbols.
    subprocess.run([sys.executable, "-c", CAPTURED], check=True)
