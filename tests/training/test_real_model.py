"""The loop's promises with the library's own model instead of the tests' tiny one."""

import pytest
import torch
from transformers import AutoModelForMaskedLM

from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.training.optimizer import parameter_groups
from sortyard.training.weights import model_tensors
from tests.training.tiny import LENGTH, VOCAB, TinySource, by_name, new_run, same_bits, tensors_of, train_tiny


def real_model(**options):
    values = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "moe_intermediate_size": 16,
        "max_position_embeddings": LENGTH,
        "bucket_size": 2,
        "query_chunk": 2,
        "near_buckets": 1,
        "beam": 2,
        "dense_up_to": 2,
        "local_window": 1,
        "hidden_dropout_prob": 0.1,
        "bias_update_rate": 1e-3,
    }
    model_options = ModelOptions(**{**values, **options})
    return build_model(model_options, head="masked_lm", vocab_size=VOCAB, tokenizer_ids={"pad_token_id": 0}, seed=0)


def gradients(model, micro_batches):
    objective = MaskedLMObjective()
    num_targets = sum(map(objective.count_targets, micro_batches))
    for batch in micro_batches:
        objective.compute(model, batch, num_targets=num_targets).total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_eight_micro_batches_equal_one_large_batch():
    micro_batches = TinySource(micro_batches=8, rows=2).step(0)
    whole = [{name: torch.cat([batch[name] for batch in micro_batches]) for name in micro_batches[0]}]
    options = {"hidden_dropout_prob": 0.0, "balance": "none"}
    parts, expected = (gradients(real_model(**options).double(), each) for each in (micro_batches, whole))
    assert parts.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-12)


def test_resume_and_activation_checkpointing_change_no_bit(tmp_path):
    whole, resumed = (new_run(tmp_path / name) for name in ("whole", "resumed"))
    train_tiny(whole, model=real_model())
    source = TinySource()
    source.fail_at = 5
    with pytest.raises(RuntimeError):
        train_tiny(resumed, model=real_model(), source=source, checkpoint_every=3)
    train_tiny(resumed, model=real_model(), checkpoint_every=3)
    assert same_bits(tensors_of(resumed, 8), tensors_of(whole, 8))
    for mode, every in (("full", 1), ("full", 2), ("selective", 1)):
        run = new_run(tmp_path / f"{mode}-{every}")
        train_tiny(run, model=real_model(), activation_checkpointing=mode, activation_checkpointing_every=every)
        assert same_bits(tensors_of(run, 8), tensors_of(whole, 8))


def test_the_exported_folder_loads_as_the_trained_model(tmp_path):
    run, model = new_run(tmp_path / "run"), real_model()
    train_tiny(run, model=model)
    loaded = AutoModelForMaskedLM.from_pretrained(run.model)
    assert same_bits(by_name(model_tensors(loaded)), by_name(model_tensors(model)))
    line = run.read_metrics("train")[-1]
    assert line["balance_loss"] > 0
    assert 0 < line["utilisation"] <= 1
    assert 0 < line["sparsity"] < 1


def test_no_bias_norm_or_embedding_decays():
    model = real_model(use_bias=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(parameter)] for parameter in parameter_groups(model, weight_decay=0.1)[0]["params"]}
    assert decayed
    assert not [name for name in decayed if "norm" in name or "embeddings" in name or name.endswith("bias")]
