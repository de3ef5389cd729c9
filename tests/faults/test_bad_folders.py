"""Damaged, mixed up and half-made folders of models and runs."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM

from sortyard.cli.main import main
from sortyard.data.glue import TASKS
from sortyard.errors import InputError
from sortyard.interop import Predictor
from sortyard.jobs.folders import discarded_if_untrained, open_job
from sortyard.jobs.loading import load_classifier, load_language_model
from sortyard.jobs.peeking import peek_at
from sortyard.recipe import load_recipe, resolved_yaml
from sortyard.runs.folder import RunFolder
from tests.evaluation.tiny import make_bert, make_tokenizer

WEIGHTS = "model.safetensors"


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def of_another_library(folder: Path) -> None:
    change_config(folder, model_type="distilbert", architectures=["DistilBertForMaskedLM"], dim=32, n_heads=2)


def of_another_width(folder: Path) -> None:
    change_config(folder, hidden_size=64)


def with_torn_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def with_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def with_a_word_for_a_number(folder: Path) -> None:
    change_config(folder, hidden_size="wide")


DAMAGES = [of_another_library, of_another_width, with_torn_weights, with_a_pickle, with_a_word_for_a_number]


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    config = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_only_the_head_and_the_pooler_may_be_new(language_model: Path) -> None:
    model = load_classifier(str(language_model), task=TASKS["sst2"], seed=0)
    again = load_classifier(str(language_model), task=TASKS["sst2"], seed=0)
    assert model.classifier.weight.equal(again.classifier.weight)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_start_is_refused(damage: Callable[[Path], None], language_model: Path) -> None:
    damage(language_model)
    with pytest.raises(InputError, match="--from"):
        load_classifier(str(language_model), task=TASKS["sst2"], seed=0)


def test_random_weights_are_named(language_model: Path) -> None:
    of_another_width(language_model)
    with pytest.raises(InputError, match=r"missing or of another shape \(bert\.embeddings"):
        load_classifier(str(language_model), task=TASKS["sst2"], seed=0)


def test_a_torn_language_model_is_refused(language_model: Path) -> None:
    with_torn_weights(language_model)
    with pytest.raises(InputError, match="the model cannot be loaded"):
        load_language_model(language_model, causal=False)


@pytest.mark.parametrize("damage", DAMAGES[1:])
def test_a_damaged_classifier_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    make_bert(num_labels=2).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)):
        Predictor.from_pretrained(tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    make_bert(num_labels=2).save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"new{number}" for number in range(1000)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"the tokenizer has ids up to 1,\d+, but the model embeds only"):
        Predictor.from_pretrained(tmp_path)


def make_run(path: Path, *, job: str = '{"verb": "finetune", "start": "scratch"}') -> RunFolder:
    resolved = resolved_yaml(load_recipe("small").recipe)
    run = RunFolder.create(path, recipe="", resolved=resolved, environment={})
    (path / "job.json").write_text(job)
    return run


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("[]", "must hold one JSON object"),
        ('{"verb": "walk"}', "verb is 'walk'"),
        ('{"verb": "finetune", "start": 1}', "start is 1"),
        ("{", "cannot be read"),
    ],
)
def test_a_damaged_job_is_named(job: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_job(make_run(tmp_path / "run", job=job))


def test_rows_of_a_finetuning_run_cannot_be_peeked_at(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(InputError, match="is no pretraining run"):
        peek_at(tmp_path / "run", count=1, sequence_length=64, seed=0)


def test_a_bad_tokenizer_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words\n")
    (tmp_path / "empty").mkdir()
    words = ["data", "prep", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out")]
    assert main([*words, "--tokenizer", str(tmp_path / "empty")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_keeps_a_run_that_has_no_metrics_yet(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.path.joinpath("checkpoints", "step-00000005").mkdir(parents=True)
    with pytest.raises(InputError), discarded_if_untrained(run):
        raise InputError("the data ends here")
    assert run.path.exists()


@pytest.mark.parametrize("began", [True, False])
def test_a_full_disk_keeps_what_can_be_resumed_and_nothing_else(tmp_path: Path, began: bool) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises((InputError, OSError)) as caught, discarded_if_untrained(run):  # noqa: PT012 - what it wraps
        if began:
            run.append_event("start", step=0)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert run.path.exists() == began
    assert (f"sortyard resume {run.path}" in str(caught.value)) == began
