"""Whatever device and type are torch's defaults, a call's tensors are where its inputs are, and seeds mean the same."""

from collections.abc import Callable

import pytest
import torch
from tests.model.conftest import tiny_config
from torch import Tensor

from sortyard.model.experts.options import ExpertOptions
from sortyard.model.experts.router import make_router
from sortyard.model.heads import SortyardForMaskedLM
from sortyard.ops import BucketSpec, bucket_attention, bucket_relation
from sortyard.ops.bucket_attention import available_backends
from sortyard.ops.lsh_hash import hashes, reference
from sortyard.ops.lsh_tree.build import split_directions

HASHES = ("gray", "cross_polytope", "e2lsh", "kmeans", "random", "sign_sum")
SPECS = {"tree": BucketSpec(bucket_size=4, query_chunk=8, near_buckets=2, beam=2, local_window=2, dense_up_to=20)} | {
    name: BucketSpec(selection="rounds", hash=name, bucket_size=4, local_window=2, dense_up_to=20) for name in HASHES
}
CASES = [(name, causal) for name in SPECS for causal in (False, True) if (name, causal) != ("kmeans", True)]


@pytest.mark.parametrize(("name", "causal"), CASES)
@pytest.mark.parametrize("backend", ["reference", *available_backends("cpu")])
def test_attention_stays_on_the_inputs_device(name: str, causal: bool, backend: str) -> None:
    drawn = torch.randn(3, 3, 2, 60, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = leaves = [x.requires_grad_() for x in drawn.unbind()]
    mask = torch.arange(60) < torch.tensor([[60], [43], [15]])
    marked = (torch.arange(60) == 7).expand(3, -1)
    options = {"causal": causal, "key_padding_mask": mask, "backend": backend, "global_tokens": marked}

    def attend() -> list[Tensor]:
        out = bucket_attention(q, k, v, SPECS[name], **options)
        relation = bucket_relation(q, k, SPECS[name], **options)
        return [relation.near, relation.counts, out, *torch.autograd.grad(out.square().sum(), leaves)]

    plain = attend()
    with torch.device("meta"):
        found = attend()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, plain, strict=True))


@pytest.mark.parametrize("name", SPECS)
def test_dropout_stays_on_the_inputs_device(name: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 60, 8, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.device("meta"):
        assert bucket_attention(q, k, v, SPECS[name], backend="cpu", dropout_p=0.5).isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"selection": "rounds"},
        {"router": "frozen_random"},
        {"router": "token_hash"},
        {"context": "ema", "attention_layers": ["sliding", "dense"], "sliding_window": 4},
        {"position_embedding_type": "learned", "type_vocab_size": 2, "group_gate": "context"},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_a_model_stays_on_its_device(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = SortyardForMaskedLM(tiny_config(**changes)).train()
    ids = torch.randint(5, 97, (2, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(40) < torch.tensor([[40], [29]])

    def step() -> list[Tensor]:
        model.zero_grad()
        outputs = model(ids, mask, labels=ids, num_items_in_batch=80)
        outputs.loss.backward()
        model.update_expert_bias(outputs.expert_loads)
        return [outputs.loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    plain = step()
    with torch.device("meta"):
        found = step()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, plain, strict=True))


def frozen_gate() -> Tensor:
    router = make_router(ExpertOptions(router="frozen_random"), hidden_size=8, layer_index=1)
    router.reset_parameters(0.5)
    return router.get_buffer("gate")


def kmeans() -> Tensor:
    keys = torch.linspace(-1, 1, 160, dtype=torch.float32, device="cpu").sin().view(1, 1, 20, 8)
    lengths = torch.tensor([20], device="cpu")
    return hashes.kmeans_centroids(keys, lengths=lengths, bucket_size=4, seed=1, round_index=0)[0]


VECTOR = torch.linspace(-3, 2, 8, dtype=torch.float32)
DRAWN: dict[str, Callable[[], object]] = {
    "tree": lambda: split_directions(3, head_dim=8, seed=1),
    "gray": lambda: hashes.gray_projections(8, seed=1, rounds=range(2)),
    "cross_polytope": lambda: hashes.cross_polytope_codes(VECTOR, seed=1, round_index=0),
    "e2lsh": lambda: hashes.e2lsh_codes(VECTOR, seed=1, round_index=0),
    "sign_sum": lambda: hashes.sign_sum_codes(VECTOR, seed=1, round_index=0, num_buckets=64),
    "e2lsh reference": lambda: reference.e2lsh_code(VECTOR, seed=1, round_index=0),
    "kmeans": kmeans,
    "frozen gate": frozen_gate,
}


@pytest.mark.parametrize("name", DRAWN)
def test_what_a_seed_draws_does_not_follow_the_default_type(name: str) -> None:
    plain = torch.as_tensor(DRAWN[name]())
    torch.set_default_dtype(torch.float64)
    try:
        found = torch.as_tensor(DRAWN[name]())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.to(plain.dtype), plain)


def test_a_frozen_gate_can_be_drawn_again_under_another_default_device() -> None:
    router = make_router(ExpertOptions(router="frozen_random"), hidden_size=8, layer_index=0)
    router.reset_parameters(0.5)
    before = router.get_buffer("gate").clone()
    with torch.device("meta"):
        router.reset_parameters(0.5)
        made = make_router(ExpertOptions(router="frozen_random"), hidden_size=8, layer_index=0)
        made.reset_parameters(0.5)
    assert torch.equal(router.get_buffer("gate"), before)
    assert all(buffer.is_meta for buffer in made.buffers())
