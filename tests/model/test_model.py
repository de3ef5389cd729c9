"""The encoder and its heads: what must hold for every configuration."""

import copy
import subprocess
import sys

import pytest
import torch

from sortyard.model.configuration import SortyardConfig
from sortyard.model.factory import HEADS
from sortyard.model.heads import (
    SortyardForCausalLM,
    SortyardForMaskedLM,
    SortyardForQuestionAnswering,
    SortyardForSequenceClassification,
    SortyardForTokenClassification,
    _pool,
)
from sortyard.model.modeling import SortyardModel

from .conftest import tiny_config


def build(cls: type, config: SortyardConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return cls(copy.deepcopy(config)).double().eval()


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[0, 29:] = 0
    return mask


def test_padding_and_neighbours_never_change_a_token(config, ids, mask):
    model = build(SortyardModel, config)
    batch = model(ids, mask).last_hidden_state
    alone = model(ids[:1, :29]).last_hidden_state
    torch.testing.assert_close(batch[:1, :29], alone, rtol=0, atol=1e-12)
    shifted = torch.cat((torch.zeros(1, 11, dtype=torch.long), ids[:1, :29]), 1)
    left = model(shifted, torch.cat((torch.zeros(1, 11), torch.ones(1, 29)), 1).long()).last_hidden_state
    torch.testing.assert_close(left[:, 11:], alone, rtol=0, atol=1e-12)


def test_packed_sequences_equal_separate_ones(config, ids):
    model = build(SortyardModel, config)
    packed = model(ids, cu_seqlens=torch.tensor([0, 25, 40, 80])).last_hidden_state
    for row, start, end in ((0, 0, 25), (0, 25, 40), (1, 0, 40)):
        alone = model(ids[row : row + 1, start:end]).last_hidden_state
        torch.testing.assert_close(packed[row : row + 1, start:end], alone, rtol=0, atol=1e-12)


def test_attention_weights_reproduce_the_output(config, ids, mask):
    model = build(SortyardModel, config)
    fast = model(ids, mask)
    slow = model(ids, mask, output_attentions=True)
    real = mask.bool()
    torch.testing.assert_close(fast.last_hidden_state[real], slow.last_hidden_state[real], rtol=0, atol=1e-11)
    assert fast.attentions is None
    assert [tuple(a.shape) for a in slow.attentions] == [(2, 2, 40, 40)] * 2
    sums = slow.attentions[0].sum(-1).transpose(1, 2)[real]
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_hidden_states_and_router_logits_come_on_request(config, ids):
    model = build(SortyardModel, config)
    plain = model(ids)
    assert plain.hidden_states is None
    assert plain.router_logits is None
    full = model(ids, output_hidden_states=True, output_router_logits=True)
    assert len(full.hidden_states) == 3
    torch.testing.assert_close(full.hidden_states[-1], full.last_hidden_state)
    expected = sum(config.has_experts(layer) for layer in range(2))
    assert [tuple(r.shape) for r in full.router_logits] == [(80, 4)] * expected
    tuple_form = model(ids, return_dict=False)
    torch.testing.assert_close(tuple_form[0], full.last_hidden_state)


def test_loads_count_real_tokens_only(config, ids, mask):
    outputs = build(SortyardModel, config)(ids, mask, output_statistics=True)
    layers = sum(config.has_experts(layer) for layer in range(2))
    if not layers:
        assert outputs.expert_loads is None
        return
    assert outputs.expert_loads.shape == (layers, 4)
    assert outputs.expert_loads.sum(-1).tolist() == [2 * 69] * layers


def test_activation_checkpointing_changes_nothing(config, ids, mask):
    gradients = []
    for checkpointing in (False, True):
        model = build(SortyardForMaskedLM, config).train()
        if checkpointing:
            # transformers renamed it during 5.x
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
            next(getattr(model, name) for name in names if hasattr(model, name))()
        outputs = model(ids, mask, labels=ids)
        outputs.loss.backward()
        loads = outputs.expert_loads
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    if loads is not None:
        assert loads.sum(-1).tolist() == [2 * 69] * len(loads)


def test_every_parameter_gets_a_finite_gradient(config, ids, mask):
    model = build(SortyardForMaskedLM, config).train()
    model(ids, mask, labels=ids).loss.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", HEADS)
def test_save_and_load_give_the_same_model(head, tmp_path, ids):
    from transformers import AutoConfig, AutoModel

    model = HEADS[head](tiny_config(context="ema", num_labels=3)).eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = HEADS[head].from_pretrained(tmp_path).eval()
    before, after = model(ids).to_tuple()[0], loaded(ids).to_tuple()[0]
    assert torch.equal(before, after)
    assert type(AutoConfig.from_pretrained(tmp_path)) is SortyardConfig
    assert torch.equal(AutoModel.from_pretrained(tmp_path).eval()(ids)[0], model.model(ids)[0])


@pytest.mark.parametrize("sparse", [True, False], ids=["targets-only", "all-logits"])
def test_masked_lm_micro_batches_add_up_to_the_step(sparse, ids):
    config = tiny_config(balance_coef=0.0, sparse_prediction=sparse)
    labels = torch.full_like(ids, -100)
    labels[0, :3], labels[1, 5:25] = ids[0, :3], ids[1, 5:25]
    model = build(SortyardForMaskedLM, config)
    whole = model(ids, labels=labels)
    parts = [model(ids[r : r + 1], labels=labels[r : r + 1], num_items_in_batch=23).loss for r in (0, 1)]
    torch.testing.assert_close(sum(parts), whole.loss, rtol=0, atol=1e-12)
    assert whole.logits.shape == ((23, 97) if sparse else (2, 40, 97))


def test_balance_loss_is_weighted_by_the_share_of_targets(ids):
    labels = torch.full_like(ids, -100)
    labels[:, :5] = ids[:, :5]
    model = build(SortyardForMaskedLM, tiny_config(balance_coef=1.0))
    whole = model(ids, labels=labels)
    half = model(ids, labels=labels, num_items_in_batch=20)
    torch.testing.assert_close(half.aux_loss, whole.aux_loss / 2)
    torch.testing.assert_close(whole.loss, whole.task_loss + whole.aux_loss)


@pytest.mark.parametrize("selection", ["tree", "rounds"])
@pytest.mark.parametrize("context", ["running_mean", "ema", "none"])
def test_causal_model_never_sees_the_future(selection, context, ids):
    model = build(SortyardForCausalLM, tiny_config(selection=selection, context=context))
    changed = ids.clone()
    changed[:, 23:] = (changed[:, 23:] + 7) % 90 + 5
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :23], after[:, :23])
    assert not torch.equal(before[:, 23:], after[:, 23:])


def test_causal_model_refuses_a_context_of_the_whole_sequence():
    with pytest.raises(ValueError, match="context"):
        SortyardForCausalLM(tiny_config(context="mean"))


def test_causal_loss_predicts_the_next_token(ids):
    model = build(SortyardForCausalLM, tiny_config(context="none", balance="none"))
    outputs = model(ids, labels=ids)
    logits = outputs.logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected)


def test_generation_extends_a_prompt(ids):
    model = SortyardForCausalLM(tiny_config(context="ema")).eval()
    out = model.generate(ids[:, :12], max_new_tokens=4, do_sample=False, use_cache=False, pad_token_id=0)
    assert out.shape == (2, 16)
    greedy = model(out[:, :15]).logits[:, -1].argmax(-1)
    assert torch.equal(greedy, out[:, 15])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_sequence_classification_losses(pooling, ids, mask):
    config = tiny_config(num_labels=3, classifier_pooling=pooling, balance="none")
    model = build(SortyardForSequenceClassification, config)
    outputs = model(ids, mask, labels=torch.tensor([0, 2]))
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 2]))
    torch.testing.assert_close(outputs.loss, expected)
    several = model(ids, mask, labels=torch.ones(2, 3))
    assert several.loss.item() == pytest.approx(
        torch.nn.functional.binary_cross_entropy_with_logits(several.logits, torch.ones(2, 3).double()).item()
    )


def test_regression_is_the_mean_squared_error(ids):
    model = build(SortyardForSequenceClassification, tiny_config(num_labels=1, balance="none"))
    outputs = model(ids, labels=torch.tensor([1.5, 4.0]))
    expected = ((outputs.logits[:, 0] - torch.tensor([1.5, 4.0])) ** 2).mean()
    torch.testing.assert_close(outputs.loss, expected)


def test_token_classification_ignores_unlabelled_tokens(ids):
    model = build(SortyardForTokenClassification, tiny_config(num_labels=3, balance="none"))
    labels = torch.full_like(ids, -100)
    labels[:, 3] = 1
    outputs = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, 3], torch.tensor([1, 1]))
    torch.testing.assert_close(outputs.loss, expected)


def test_question_answering_ignores_answers_outside(ids):
    model = build(SortyardForQuestionAnswering, tiny_config(balance="none"))
    outputs = model(ids, start_positions=torch.tensor([3, 99]), end_positions=torch.tensor([5, 99]))
    start = torch.nn.functional.cross_entropy(outputs.start_logits[:1], torch.tensor([3]))
    end = torch.nn.functional.cross_entropy(outputs.end_logits[:1], torch.tensor([5]))
    torch.testing.assert_close(outputs.loss, (start + end) / 2)


def test_question_answering_with_one_end_outside_is_the_mean_of_both_means(ids):
    model = build(SortyardForQuestionAnswering, tiny_config(balance="none"))
    outputs = model(ids, start_positions=torch.tensor([3, 99]), end_positions=torch.tensor([5, 7]))
    start = torch.nn.functional.cross_entropy(outputs.start_logits[:1], torch.tensor([3]))
    end = torch.nn.functional.cross_entropy(outputs.end_logits, torch.tensor([5, 7]))
    torch.testing.assert_close(outputs.loss, (start + end) / 2)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_several_targets_a_sequence_count_as_trainer_counts_them(ids, problem):
    model = build(SortyardForSequenceClassification, tiny_config(num_labels=5, problem_type=problem, balance="none"))
    labels = torch.rand(2, 5).round().double()
    alone = model(ids, labels=labels).loss
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=labels.ne(-100).sum()).loss, alone)
    logits = model(ids).logits
    loss = torch.nn.functional.mse_loss if problem == "regression" else None
    wanted = (loss or torch.nn.functional.binary_cross_entropy_with_logits)(logits, labels)
    torch.testing.assert_close(alone, wanted)


@pytest.mark.parametrize("padded", ["left", "right", "not"])
def test_a_causal_classifier_reads_the_last_real_token(ids, padded):
    model = build(SortyardForSequenceClassification, tiny_config(causal=True, context="running_mean"))
    pads = torch.zeros(2, 5, dtype=torch.long)
    parts = {"left": (pads, ids), "right": (ids, pads), "not": (ids,)}[padded]
    mask = torch.cat([torch.ones_like(part) if part is ids else part for part in parts], 1)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 90 + 5
    own, other = (
        model(torch.cat([new if part is ids else part for part in parts], 1), mask).logits for new in (ids, changed)
    )
    torch.testing.assert_close(own, model(ids).logits)
    assert not torch.allclose(own, other)


def test_means_of_long_texts_do_not_overflow_in_float16():
    hidden = torch.full((1, 4096, 2), 20.0, dtype=torch.float16)
    for mask in (None, torch.ones(1, 4096, dtype=torch.long)):
        pooled = _pool(hidden, mask, tiny_config(classifier_pooling="mean"))
        assert pooled.dtype == torch.float16
        assert pooled.tolist() == [[20.0, 20.0]]


def test_the_loss_of_kept_positions_only(ids):
    model = build(SortyardForCausalLM, tiny_config(balance="none", context="running_mean"))
    whole = model(ids, labels=ids).logits
    kept = model(ids, labels=ids, logits_to_keep=7)
    wanted = torch.nn.functional.cross_entropy(whole[:, -7:-1].flatten(0, 1), ids[:, -6:].flatten())
    torch.testing.assert_close(kept.loss, wanted)


def test_states_are_kept_only_if_wanted(ids):
    model, kept = build(SortyardModel, tiny_config()), []
    model.encoder.register_forward_hook(lambda _, __, out: kept.append(len(out[1].hidden_states)))
    assert model(ids).hidden_states is None
    assert len(model(ids, output_hidden_states=True).hidden_states) == 3
    assert kept == [0, 3]


COMPILED = """
import torch
from sortyard import SortyardConfig, SortyardModel
config = SortyardConfig(vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, dense_up_to=8)
model = torch.compile(SortyardModel(config).eval(), backend="eager")
model(torch.randint(5, 90, (2, 40)), output_attentions=True)
"""


def test_attention_weights_of_a_compiled_model_are_refused():
    # In a process of its own: the shape checks of the tests refuse the tracer's symbols.
    ended = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "ValueError: which token reads which cannot be told in an exported or compiled graph" in ended.stderr


def test_expert_bias_moves_only_when_told(ids):
    model = build(SortyardModel, tiny_config(bias_update_rate=0.1))
    state = copy.deepcopy(model.state_dict())
    outputs = model(ids, output_statistics=True)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    model.update_expert_bias(outputs.expert_loads)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, state[k])]
    assert changed
    assert all("bias" in k for k in changed)


def test_sparsity_is_reported(ids):
    model = build(SortyardModel, tiny_config())
    assert 0 < model(ids, output_statistics=True).sparsity < 1
    assert model(ids[:, :8], output_statistics=True).sparsity == 0
    assert build(SortyardModel, tiny_config(attention="dense"))(ids, output_statistics=True).sparsity is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 33}, "multiple of num_attention_heads"),
        ({"num_attention_heads": 32}, "even head width"),
        ({"attention_layers": ["bucket"]}, "attention_layers names 1 layers"),
        ({"attention_layers": ["bucket", "spare"]}, "spare"),
        ({"expert_layers": [True]}, "expert_layers names 1"),
        ({"num_experts": 5}, "num_experts=5"),
        ({"near_buckets": 0}, "near_buckets"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "exactly one of"),
        ({"attention_mask": torch.ones(2, 1, 40, 40)}, r"must be \[B, T\]"),
        ({"token_type_ids": torch.ones(2, 40, dtype=torch.long)}, "type_vocab_size"),
    ],
)
def test_calls_that_do_not_fit_are_refused(call, message, ids):
    inputs = call and {"input_ids": ids, **call}
    with pytest.raises(ValueError, match=message):
        build(SortyardModel, tiny_config())(**inputs)


def test_a_text_longer_than_learned_positions_is_refused(ids):
    model = build(SortyardModel, tiny_config(position_embedding_type="learned", max_position_embeddings=32))
    with pytest.raises(ValueError, match="40 tokens is longer than max_position_embeddings 32"):
        model(ids)


def test_weights_depend_on_the_seed_alone():
    from sortyard.model.factory import build_model
    from sortyard.model.options import ModelOptions

    def weights(seed):
        torch.rand(seed + 3)
        options = ModelOptions(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        return build_model(options, head="masked_lm", vocab_size=50, tokenizer_ids={}, seed=seed).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.dense.weight"], other["head.dense.weight"])
    with pytest.raises(ValueError, match="head 'lm' is unknown"):
        build_model(ModelOptions(), head="lm", vocab_size=50, tokenizer_ids={}, seed=0)


def test_statistics_of_the_batch_come_only_when_they_are_wanted(ids):
    model = build(SortyardForSequenceClassification, tiny_config(num_labels=3))
    assert set(model(ids).keys()) == {"logits"}
    assert set(model.model(ids).keys()) == {"last_hidden_state"}
    wanted = {"aux_loss", "expert_loads", "sparsity"}
    assert wanted <= model(ids, output_router_logits=True).keys()
    assert wanted <= model(ids, labels=torch.tensor([0, 1])).keys()
    assert wanted <= model.train()(ids).keys()
