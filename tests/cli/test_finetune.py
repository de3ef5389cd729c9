"""`finetune` on models of other kinds, and on other examples than a recipe's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
)

from tests.end_to_end.conftest import write_inputs
from tests.evaluation.tiny import WORDS

QUICK = ("finetune.loop.epochs=null", "finetune.loop.steps=2", "finetune.loop.micro_batch_size=4")


def _write_task(path: Path) -> Path:
    rows = [f"w{number} w3{' w4' * (number % 12)}\t{('bad', 'good')[number % 2]}" for number in range(40)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return path


def _write_causal(folder: Path, **special: str) -> Path:
    """A language model that knows no padding."""
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", model_max_length=32, padding_side="right", **special
    ).save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=3, eos_token_id=3
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2Model(config).save_pretrained(folder)
    return folder


def test_a_model_without_padding_pads_with_its_end_token(sortyard: Callable, tmp_path: Path) -> None:
    start, task = _write_causal(tmp_path / "causal", eos_token="[SEP]"), _write_task(tmp_path / "task.tsv")
    words = ("finetune", "small", "--task", str(task), "--from", str(start), "--out", "run", *QUICK)
    ended = sortyard(*words, "finetune.task.max_length=8")
    assert ended.status == 0, ended.err
    assert "padding   [SEP], the end token" in ended.err
    assert "cut       " in ended.err
    assert AutoTokenizer.from_pretrained("run/model").pad_token == "[SEP]"
    model = AutoModelForSequenceClassification.from_pretrained("run/model")
    assert model.config.pad_token_id == WORDS.index("[SEP]")
    texts = ["w1 w3", "w2 w3 w4 w4 w5", "w5"]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    assert sortyard("predict", "run", "-i", "in.txt", "-o", "out.jsonl").status == 0
    found = [json.loads(line)["logits"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with torch.inference_mode():
        wanted = [model(torch.tensor([[WORDS.index(word) for word in text.split()]])).logits[0] for text in texts]
    torch.testing.assert_close(torch.tensor(found), torch.stack(wanted))


def test_a_model_that_nothing_can_pad_for_is_refused_before_any_work(sortyard: Callable, tmp_path: Path) -> None:
    start, task = _write_causal(tmp_path / "causal"), _write_task(tmp_path / "task.tsv")
    ended = sortyard("finetune", "small", "--task", str(task), "--from", str(start), "--out", "run", *QUICK)
    assert ended.status == 2
    assert f"--from {start}: its tokenizer has no padding token" in ended.err
    assert "pad_token in tokenizer_config.json" in ended.err
    assert "baseline" not in ended.err
    assert not (tmp_path / "run").exists()


def test_examples_that_are_cut_are_counted(sortyard: Callable, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    rows = [f"cat{' dog' * (30 if number % 4 == 0 else 1)}\t{number % 2}" for number in range(40)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows[: 40 if name == "train" else 10]]) + "\n")
    words = ("finetune", "tiny.yaml", "--task", "train.tsv", "--from", "scratch", "finetune.task.dev=dev.tsv", *QUICK)
    ended = sortyard(*words, "--out", "run", "finetune.task.max_length=16")
    assert ended.status == 0, ended.err
    (told,) = [line for line in ended.err.splitlines() if line.startswith("cut ")]
    assert told.startswith("cut       10 of 40 training and 3 of 10 development examples, to 16 tokens; ")
    assert "finetune.task.max_length=N" in told
    assert (tmp_path / "run" / "baselines.json").is_file()
    ended = sortyard(*words, "--out", "whole", "finetune.task.max_length=64")
    assert not [line for line in ended.err.splitlines() if line.startswith("cut ")]


def test_a_vocabulary_with_gaps_gets_embeddings_for_its_last_id(sortyard: Callable, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    task = _write_task(tmp_path / "task.tsv")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    core = Tokenizer(WordLevel({word: 3 * number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(tmp_path / "gaps")
    words = ("finetune", "tiny.yaml", "--task", str(task), "--from", "scratch", "--out", "run", "tokenizer.path=gaps")
    ended = sortyard(*words, *QUICK, "finetune.task.max_length=16")
    assert ended.status == 0, ended.err
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["vocab_size"] == 3 * (len(WORDS) - 1) + 1


@pytest.mark.parametrize(
    ("words", "dev"),
    [
        ((), "own.jsonl"),
        (("--task", "other.tsv"), None),
        (("--data", "other.tsv"), None),
        (("--task", "other.tsv", "finetune.task.dev=mine.tsv"), "mine.tsv"),
    ],
    ids=str,
)
def test_other_examples_are_not_scored_on_the_recipes_own(
    sortyard: Callable, tmp_path: Path, words: tuple[str, ...], dev: str | None
) -> None:
    write_inputs(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text().replace("data: task.jsonl,", "data: task.jsonl, dev: own.jsonl,")
    (tmp_path / "tiny.yaml").write_text(text)
    _write_task(tmp_path / "other.tsv")
    ended = sortyard("finetune", "tiny.yaml", *words, "--dry-run", "--json")
    assert ended.status == 0, ended.err
    assert ended.json["recipe"]["finetune"]["task"]["dev"] == dev
