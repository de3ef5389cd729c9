"""Calls as transformers' own tools make them: packed rows, tuples, generation, and words that nobody knows."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

from sortyard.model.encoder import EncoderTrace
from sortyard.model.experts.routing import RoutingRecord
from sortyard.model.factory import HEADS
from sortyard.model.heads import SortyardForCausalLM, SortyardForMaskedLM, SortyardForSequenceClassification
from sortyard.model.losses import TargetLoss
from sortyard.model.modeling import SortyardModel

from .conftest import tiny_config


def build(cls: type, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return cls(tiny_config(**changes)).double().eval()


@pytest.mark.parametrize("return_flash_attn_kwargs", [False, True], ids=["positions", "boundaries"])
def test_sequences_that_transformers_flattens_stay_apart(return_flash_attn_kwargs):
    lengths = (25, 1, 1, 13)
    texts = [torch.randint(5, 97, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]
    collate = DataCollatorWithFlattening(
        return_tensors="pt", return_flash_attn_kwargs=return_flash_attn_kwargs, return_seq_idx=True
    )
    batch = collate([{"input_ids": text} for text in texts])
    model = build(SortyardForCausalLM, context="running_mean")
    packed = model(**batch, use_cache=False)
    alone = [model(torch.tensor([text])).logits for text in texts]
    torch.testing.assert_close(packed.logits, torch.cat(alone, 1), rtol=0, atol=1e-12)
    assert packed.loss.isfinite()


@pytest.mark.parametrize("position_embedding_type", ["rope", "learned"])
def test_positions_that_restart_part_a_row_unless_there_is_a_mask(position_embedding_type, ids):
    model = build(SortyardModel, position_embedding_type=position_embedding_type)
    positions = torch.cat([torch.arange(25), torch.arange(15)])[None]
    boundaries = torch.tensor([0, 25, 40, 65, 80])
    packed = model(ids, position_ids=positions).last_hidden_state
    assert torch.equal(packed, model(ids, cu_seqlens=boundaries).last_hidden_state)
    whole = model(ids, torch.ones_like(ids), position_ids=positions).last_hidden_state
    assert not torch.allclose(packed[:, 25:], whole[:, 25:])
    rising = model(ids, position_ids=3 * torch.arange(40)[None]).last_hidden_state  # gaps part nothing
    if position_embedding_type == "rope":
        masked = model(ids, torch.ones_like(ids), position_ids=3 * torch.arange(40)[None]).last_hidden_state
        assert torch.equal(rising, masked)


@pytest.mark.parametrize("cls", [SortyardModel, SortyardForSequenceClassification])
@pytest.mark.parametrize(
    "call",
    [
        {"cu_seqlen": torch.tensor([0, 40, 80])},
        {"cu_seq_lens_k": torch.tensor([0, 40, 80])},
        {"past_key_values": ()},
        {"is_causal": True},
    ],
    ids=lambda call: next(iter(call)),
)
def test_unknown_words_are_refused(cls, call, ids):
    with pytest.raises(TypeError, match=f"takes no argument {next(iter(call))};"):
        build(cls)(ids, **call)


def test_words_of_transformers_that_change_nothing_are_taken(ids):
    model = build(SortyardModel)
    plain = model(ids).last_hidden_state
    said = model(ids, use_cache=True, num_items_in_batch=3, head_mask=None, past_key_values=None)
    assert torch.equal(said.last_hidden_state, plain)
    with pytest.raises(ValueError, match="two names of one thing"):
        model(ids, cu_seqlens=torch.tensor([0, 40, 80]), cu_seq_lens_q=torch.tensor([0, 40, 80]))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.arange(40) + 1, "a sequence of 41 tokens is longer than max_position_embeddings 40"),
        (torch.arange(40) - 1, "position_ids holds -1"),
    ],
)
def test_positions_without_an_embedding_are_refused(positions, message, ids):
    model = build(SortyardModel, position_embedding_type="learned", max_position_embeddings=40)
    assert model(ids, position_ids=torch.arange(40)[None]).last_hidden_state.isfinite().all()
    with pytest.raises(ValueError, match=message):
        model(ids, position_ids=positions[None])


@pytest.mark.parametrize("head", HEADS)
def test_a_configuration_that_asks_for_tuples_gets_them(head, ids):
    model = build(HEADS[head], context="ema", num_labels=3, return_dict=False)
    fields = model(ids, return_dict=True, output_hidden_states=True)
    found = model(ids, output_hidden_states=True)
    assert isinstance(found, tuple)
    assert len(found) == len(fields)
    assert torch.equal(found[0], fields[0])


def test_a_causal_head_leaves_the_callers_configuration_alone():
    config = tiny_config(context="ema")
    model = SortyardForCausalLM(config)
    assert not config.causal
    assert model.config.causal
    assert model.model.config is model.config
    assert not SortyardForMaskedLM(config).config.causal


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("name", ["position_ids", "token_type_ids", "global_tokens"])
def test_generation_keeps_what_it_is_given(name, use_cache, ids):
    model = build(SortyardForCausalLM, context="ema", type_vocab_size=2, num_global_tokens=0)
    given = {"position_ids": 2 * torch.arange(40).expand(2, -1)}
    given["token_type_ids"] = torch.ones_like(ids)
    given["global_tokens"] = (torch.arange(40) == 7).expand(2, -1)
    seen = []
    forward = model.model.forward
    model.model.forward = lambda *args, **kwargs: seen.append(kwargs[name]) or forward(*args, **kwargs)
    settings = {"max_new_tokens": 3, "do_sample": False, "use_cache": use_cache, "pad_token_id": 0}
    model.generate(ids, **settings, **{name: given[name]})
    for count, extended in enumerate(seen):
        assert torch.equal(extended[:, :40], given[name])
        last = {"position_ids": 78 + count, "token_type_ids": 1, "global_tokens": 0}[name]
        assert extended.shape == (2, 40 + count)
        assert count == 0 or extended[0, -1] == last
    assert len(seen) == 3


def test_generation_refuses_packed_prompts(ids):
    model = build(SortyardForCausalLM, context="ema")
    with pytest.raises(ValueError, match="one prompt a row"):
        model.generate(ids, max_new_tokens=1, pad_token_id=0, cu_seq_lens_q=torch.tensor([0, 40, 80]))


@pytest.mark.parametrize("count", [0, torch.tensor(0)], ids=["number", "tensor"])
def test_a_step_without_any_target_is_worth_nothing(count, ids):
    model = build(SortyardForMaskedLM, balance_coef=1.0).train()
    outputs = model(ids, labels=torch.full_like(ids, -100), num_items_in_batch=count)
    assert outputs.loss.item() == 0
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


def test_layers_on_several_devices_report_on_the_first_ones():
    def record(device: str) -> RoutingRecord:
        empty = torch.zeros(0, device=device)
        return RoutingRecord(empty, empty, empty, torch.ones(4, device=device), torch.ones((), device=device))

    trace = EncoderTrace(2, routing=[record("meta"), record("cpu")])
    assert trace.aux_loss.is_meta
    assert trace.expert_loads.is_meta
    assert trace.expert_loads.shape == (2, 4)


def test_parts_of_a_loss_meet_on_the_device_of_the_logits():
    loss = TargetLoss(torch.ones((), device="meta"), torch.tensor(3))
    assert all(part.is_meta for part in loss.weighted(torch.ones(()), 4))
    assert all(part.is_meta for part in loss.weighted(torch.ones(()), None))
