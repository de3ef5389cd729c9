"""Segments, specifications, hash codes, the tree's leaves and the row gather."""

from dataclasses import asdict

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from sortyard.model.attention.options import AttentionOptions
from sortyard.ops import BucketSpec, lsh_codes, make_segments
from sortyard.ops.bucket_attention.gather_rows import gather_rows
from sortyard.ops.lsh_hash import hashes, reference
from sortyard.ops.lsh_hash.hashes import inverse_gray, random_codes, sign_sum_codes
from sortyard.ops.lsh_tree import build_leaves
from sortyard.ops.lsh_tree.reference import content_tree, position_tree


def test_segments_of_full_rows_are_trivial() -> None:
    segments = make_segments(2, 3, device="cpu")
    assert segments.is_trivial
    assert segments.lengths == (3, 3)
    assert segments.token_index.tolist() == [0, 1, 2, 3, 4, 5]
    assert make_segments(2, 3, key_padding_mask=torch.ones(2, 3, dtype=torch.bool), device="cpu").is_trivial


def test_segments_drop_pads_and_empty_sequences() -> None:
    mask = torch.tensor([[False, True, False, True], [False] * 4, [True, False, False, False]])
    segments = make_segments(3, 4, key_padding_mask=mask, device="cpu")
    assert segments.lengths == (2, 1)
    assert segments.token_index.tolist() == [1, 3, 8]
    assert segments.ids.tolist() == [[-1, 0, -1, 0], [-1] * 4, [1, -1, -1, -1]]
    assert segments.positions.tolist() == [[0, 0, 0, 1], [0] * 4, [0] * 4]
    assert not segments.is_trivial


def test_segments_of_packed_rows() -> None:
    segments = make_segments(2, 5, cu_seqlens=torch.tensor([0, 2, 5, 5, 8]), device="cpu")
    assert segments.lengths == (2, 3, 3)
    assert segments.ids.tolist() == [[0, 0, 1, 1, 1], [2, 2, 2, -1, -1]]
    assert segments.positions.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]]


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [([1, 5], "start at 0"), ([0], "start at 0"), ([0, 7], "crosses a row"), ([0, 3, 2], "rise"), ([0, 5, 11], "rise")],
)
def test_bad_boundaries_are_refused(boundaries: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_segments(2, 5, cu_seqlens=torch.tensor(boundaries), device="cpu")


def test_segments_on_another_device_are_made_once() -> None:
    segments = make_segments(2, 5, cu_seqlens=torch.tensor([0, 2, 5, 5, 8]), device="cpu")
    assert segments.to("cpu") is segments
    moved = send_to_device({"segments": segments}, "meta")["segments"]  # accelerate's, between layers
    assert moved is segments.to("meta", non_blocking=True)
    assert all(x.is_meta for x in (moved.counts, moved.token_index, moved.ids, moved.positions))
    assert moved.lengths == segments.lengths
    assert moved.kept == {}


def test_bad_mask_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="must be \\[B, T\\]"):
        make_segments(2, 5, key_padding_mask=torch.ones(2, 4, dtype=torch.bool), device="cpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"selection": "blocks"}, "selection is 'blocks'"),
        ({"hash": "md5"}, "hash is 'md5'"),
        ({"bucket_size": 0}, "bucket_size is 0; it must be an integer of at least 1"),
        ({"beam": 2.5}, "beam is 2.5"),
        ({"target_sparsity": 1.0}, "between 0 and 1"),
        ({"num_buckets": 12}, "power of two, for example 16"),
        ({"num_buckets": 0}, "at least 1"),
        ({"num_buckets": 8, "target_sparsity": 0.5}, "leave one out"),
        ({"multiset": True}, "use selection 'rounds'"),
    ],
)
def test_bad_specifications_are_refused(fields: dict[str, object], message: str) -> None:
    spec = object.__new__(BucketSpec)  # past the tests' own type checks, which come before ours
    for field, value in (asdict(BucketSpec()) | fields).items():
        object.__setattr__(spec, field, value)
    with pytest.raises(ValueError, match=message):
        spec.__post_init__()


@pytest.mark.parametrize(
    "fields",
    [{"num_buckets": 12}, {"num_buckets": 8, "target_sparsity": 0.5}, {"multiset": True}, {"beam": 0}, {"colour": 1}],
)
def test_bad_options_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        AttentionOptions(**fields)


def test_options_become_the_same_specification() -> None:
    assert AttentionOptions(dense_up_to=64).to_spec() == BucketSpec()
    changed = AttentionOptions(dense_up_to=64, tree_split="keys", tree_score="mean").to_spec()
    assert changed == BucketSpec(split="keys", score="mean")
    options = AttentionOptions(selection="rounds", hash="e2lsh", num_buckets=12, multiset=True, bucket_seed=7)
    assert options.to_spec() == BucketSpec(selection="rounds", hash="e2lsh", num_buckets=12, multiset=True, seed=7)


def test_neighbours_in_inverse_gray_order_differ_in_one_bit() -> None:
    patterns = torch.arange(2**16)
    ranks = inverse_gray(patterns)
    assert torch.equal(ranks.sort().values, patterns)
    ordered = ranks.argsort()
    changed = ordered[1:] ^ ordered[:-1]
    assert torch.equal(changed & (changed - 1), torch.zeros_like(changed))


def test_sign_sum_takes_the_seeds_values() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    codes = sign_sum_codes(x, seed=0, round_index=0, num_buckets=64)
    projections = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    for vector, code in zip(x, codes.tolist(), strict=True):
        positive = sum(float(vector @ projections[:, p]) > 0 for p in range(128))
        assert code == (2 * positive - 128) * 1319 % 64
    assert sign_sum_codes(torch.zeros(1, 8), seed=0, round_index=0, num_buckets=64).tolist() == [0]


@pytest.mark.parametrize("name", ["gray", "cross_polytope", "e2lsh", "kmeans", "random", "sign_sum"])
def test_codes_depend_on_seed_and_round_only(name: str) -> None:
    x = torch.randn(2, 3, 40, 8, generator=torch.Generator().manual_seed(0))
    codes = [
        lsh_codes(x, BucketSpec(selection="rounds", hash=name, seed=seed), round_index=index)
        for seed, index in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert codes[0].shape == (2, 3, 40)
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    assert not torch.equal(codes[0], codes[3])


def test_random_codes_do_not_depend_on_the_length() -> None:
    long = random_codes(torch.arange(1000), seed=3, round_index=1)
    assert torch.equal(long[:17], random_codes(torch.arange(17), seed=3, round_index=1))
    assert long.unique().numel() > 950


def test_alike_vectors_get_near_gray_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 500, 16, generator=generator)
    near = lsh_codes(x + 0.01 * torch.randn(x.shape, generator=generator), BucketSpec(selection="rounds"))
    assert (lsh_codes(x, BucketSpec(selection="rounds")) == near).float().mean() > 0.8


@pytest.mark.parametrize("lengths", [(32, 32), (37, 37), (37, 25)])
def test_leaves_equal_the_recursive_tree(lengths: tuple[int, int]) -> None:
    n, levels = max(lengths), 3
    keys = torch.randn(2, 2, n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    real = torch.arange(n) < torch.tensor(lengths)[:, None]
    is_even = lengths[0] == lengths[1] and n % 2**levels == 0
    leaves = build_leaves(keys, real=real, is_even=is_even, levels=levels, power_steps=1, seed=0)
    for s, length in enumerate(lengths):
        for h in range(2):
            root = content_tree(keys[s, h, :length], levels=levels, power_steps=1, seed=0)
            expected = [sorted(node.keys) for node in root.all_nodes() if not node.children]
            found = leaves.slot_of[s, h, :length] // leaves.width
            assert [(found == j).nonzero()[:, 0].tolist() for j in range(2**levels)] == expected
            assert {len(keys) for keys in expected} <= {length // 8, length // 8 + 1}


def test_position_tree_is_a_fixed_grid() -> None:
    short, long = position_tree(40, bucket_size=8), position_tree(70, bucket_size=8)
    spans = [{(node.keys[0], node.keys[-1]) for node in tree.all_nodes()} for tree in (short, long)]
    assert {span for span in spans[0] if span[1] < 32} <= spans[1]


def test_gather_rows_gradient_sums_repeats_in_float32() -> None:
    table = torch.randn(1, 2, 6, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(6, (1, 2, 3, 5), generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: gather_rows(x, index), table)
    half = torch.zeros(1, 1, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    gather_rows(half, torch.zeros(1, 1, 1000, dtype=torch.long)).sum().backward()
    assert half.grad is not None
    assert half.grad[0, 0, 0].tolist() == [1000.0] * 4


def gray_codes(x: Tensor, *, seed: int, round_index: int) -> Tensor:
    planes = hashes.gray_projections(x.shape[-1], seed=seed, rounds=range(round_index + 1)).to(x)
    return hashes.gray_codes(x @ planes)[..., round_index]


@pytest.mark.parametrize("round_index", [0, 3])
def test_codes_equal_the_plain_loops(round_index: int) -> None:
    x = torch.randn(60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    seeds = {"seed": 2, "round_index": round_index}
    pairs = (
        (gray_codes, reference.gray_code, {}),
        (hashes.cross_polytope_codes, reference.cross_polytope_code, {}),
        (hashes.e2lsh_codes, reference.e2lsh_code, {}),
        (hashes.sign_sum_codes, reference.sign_sum_code, {"num_buckets": 10}),
    )
    for fast, literal, options in pairs:
        assert fast(x, **seeds, **options).tolist() == [literal(vector, **seeds, **options) for vector in x]
