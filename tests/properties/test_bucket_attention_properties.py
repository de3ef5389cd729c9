"""Small random specifications: fast equals dense from the relation, and no key is lost."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sortyard.ops import BucketSpec, bucket_attention, bucket_relation
from sortyard.ops.bucket_attention.reference import attend_relation

specs = st.builds(
    BucketSpec,
    selection=st.sampled_from(["tree", "rounds"]),
    bucket_size=st.integers(1, 9),
    query_chunk=st.integers(1, 17),
    near_buckets=st.integers(1, 6),
    beam=st.integers(1, 6),
    power_steps=st.integers(0, 2),
    hash=st.sampled_from(["gray", "cross_polytope", "e2lsh", "random", "sign_sum"]),
    num_hash_rounds=st.integers(1, 3),
    local_window=st.integers(0, 6),
    num_global_tokens=st.integers(0, 3),
    dense_up_to=st.integers(0, 6),
    seed=st.integers(0, 5),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(spec=specs, length=st.integers(1, 50), causal=st.booleans(), seed=st.integers(0, 99))
def test_any_specification(spec: BucketSpec, length: int, causal: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 2, length, 4, dtype=torch.float64, generator=generator).unbind()
    mask = torch.rand(2, length, generator=generator) > 0.2
    relation = bucket_relation(q, k, spec, causal=causal, key_padding_mask=mask)
    literal = bucket_relation(q, k, spec, causal=causal, key_padding_mask=mask, backend="reference")
    assert torch.equal(relation.near, literal.near)
    out = bucket_attention(q, k, v, spec, causal=causal, key_padding_mask=mask)
    torch.testing.assert_close(out, attend_relation(q, k, v, relation), rtol=0, atol=1e-12)
    assert not out.transpose(1, 2)[~mask].any()
    if spec.selection == "tree":
        visible = mask[:, None, :] & mask[:, :, None]
        visible = visible.tril() if causal else visible
        seen = relation.near.sum(-1) + relation.counts.sum(-1)
        assert torch.equal(seen, visible.sum(-1)[:, None].expand_as(seen))
