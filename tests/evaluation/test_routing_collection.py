"""One pass over a real model's batches, against counting by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from sortyard.evaluation.routing_collection import collect_choices, collect_routing, expert_layers
from sortyard.model.factory import build_model
from tests.evaluation.conftest import tiny_options

VOCABULARY = 40


@pytest.fixture
def model() -> Any:
    options = tiny_options(num_experts=6, num_expert_groups=2, num_groups_per_tok=1, num_experts_per_tok=2)
    return build_model(options, head="masked_lm", vocab_size=VOCABULARY, tokenizer_ids={"pad_token_id": 0}, seed=0)


def padded_batch(seed: int, lengths: list[int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, VOCABULARY, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.full_like(ids, -100)}


DOMAINS = {"first": [padded_batch(0, [9, 4, 12]), padded_batch(1, [3])], "second": [padded_batch(2, [20, 1])]}


def routed(model: Any, batch: dict[str, torch.Tensor]) -> list[tuple[int, list[int], list[list[int]]]]:
    """The plain way: for each layer its number, the ids and the experts of the real tokens, sequence by sequence."""
    found: list[tuple[int, list[int], list[list[int]]]] = []
    layers = [module for module in model.modules() if type(module).__name__ == "ExpertLayer"]
    real = batch["attention_mask"].bool()

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        experts = output[1].experts.view(*real.shape, -1)[real]
        found.append((layers.index(module), batch["input_ids"][real].tolist(), experts.tolist()))

    handles = [layer.register_forward_hook(hook) for layer in layers]
    with torch.no_grad():
        model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    return found


def test_counts_are_those_of_counting_by_hand(model: Any) -> None:
    counts = collect_routing(model, DOMAINS, vocab_size=VOCABULARY)
    loads = torch.zeros(2, 2, 6, dtype=torch.long)
    pieces = torch.zeros(2, 6, VOCABULARY, dtype=torch.int32)
    together = torch.zeros(2, 6, 6, dtype=torch.long)
    for domain, batches in enumerate(DOMAINS.values()):
        for batch in batches:
            for layer, ids, experts in routed(model, batch):
                for token, chosen in zip(ids, experts, strict=True):
                    for expert in chosen:
                        loads[domain, layer, expert] += 1
                        pieces[layer, expert, token] += 1
                        for other in chosen:
                            together[layer, expert, other] += 1
    assert torch.equal(counts.loads, loads)
    assert torch.equal(torch.stack(counts.pieces), pieces)
    assert torch.equal(torch.stack(counts.together), together)
    assert (counts.domains, counts.tokens, counts.num_experts_per_tok) == (("first", "second"), (28, 21), 2)


def test_loads_are_the_models_own_statistics(model: Any) -> None:
    batch = DOMAINS["first"][0]
    with torch.no_grad():
        own = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_statistics=True)
    counts = collect_routing(model, {"one": [batch]}, vocab_size=VOCABULARY)
    assert torch.equal(counts.loads[0], own.expert_loads.long())


def test_the_model_is_left_as_it_was(model: Any) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    collect_routing(model, DOMAINS, vocab_size=VOCABULARY)
    collect_choices(model, DOMAINS["first"])
    assert model.training
    assert not any(layer._forward_hooks for layer in expert_layers(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_redundancy_is_one_for_copied_experts(model: Any) -> None:
    assert all(abs(value) < 0.9 for value in collect_routing(model, DOMAINS, vocab_size=VOCABULARY).redundancy)
    with torch.no_grad():
        for layer in expert_layers(model):
            for parameter in layer.parameters(recurse=False):
                parameter.copy_(parameter[:1].expand_as(parameter))
    copied = collect_routing(model, DOMAINS, vocab_size=VOCABULARY, compared_tokens=10)
    assert copied.redundancy == (pytest.approx(1), pytest.approx(1))


def test_redundancy_is_that_of_the_chosen_tokens_by_hand(model: Any) -> None:
    batch = DOMAINS["second"][0]
    inputs: list[torch.Tensor] = []
    layer = expert_layers(model)[0]
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        handle.remove()
        outputs = layer.expert_outputs(inputs[0][batch["attention_mask"].bool()])
    cosines = nn.functional.cosine_similarity(outputs[:, None], outputs[None], dim=-1).mean(-1)
    expected = (cosines.sum() - 6) / 30
    counts = collect_routing(model, {"second": [batch]}, vocab_size=VOCABULARY, compared_tokens=1000)
    assert counts.redundancy[0] == pytest.approx(float(expected), abs=1e-5)


def test_choices_keep_every_real_token_in_order(model: Any) -> None:
    choices = collect_choices(model, DOMAINS["first"])
    by_hand = [routed(model, batch) for batch in DOMAINS["first"]]
    for layer, found in enumerate(choices):
        assert found.tolist() == [experts for batch in by_hand for experts in batch[layer][2]]


def test_packed_rows_count_their_real_tokens_only(model: Any) -> None:
    batch = padded_batch(3, [16, 11])
    batch["cu_seqlens"] = torch.tensor([0, 5, 16, 27, 32], dtype=torch.int32)
    counts = collect_routing(model, {"packed": [batch]}, vocab_size=VOCABULARY)
    assert counts.tokens == (27,)
    assert counts.pieces[0][:, 0].sum() == 0


def test_nothing_to_count_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="second: no batch"):
        collect_routing(model, DOMAINS | {"second": []}, vocab_size=VOCABULARY)
    with pytest.raises(ValueError, match="no batch"):
        collect_choices(model, [])
    with pytest.raises(ValueError, match="no expert layers"):
        collect_routing(nn.Linear(2, 2), DOMAINS, vocab_size=VOCABULARY)
