"""Order, batching, files and the evaluation's figures on a tiny BERT."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sortyard.data.collate import collate_examples
from sortyard.data.encoding import encode_examples, reads_token_types
from sortyard.errors import InputError
from sortyard.evaluation import batching
from sortyard.evaluation.baselines import BaselineScore
from sortyard.evaluation.batching import plan_batches, position_limit, sequence_logits
from sortyard.evaluation.classification import evaluate_examples
from tests.evaluation.tiny import POSITIONS, make_bert, make_examples, make_texts, make_tokenizer


def one_by_one(texts: list[str], *, num_labels: int = 3) -> torch.Tensor:
    model, tokenizer = make_bert(num_labels=num_labels), make_tokenizer()
    with torch.inference_mode():
        rows = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0] for text in texts]
    return torch.stack(rows)


def test_sorted_batches_come_back_in_order() -> None:
    texts = make_texts(150)
    found = sequence_logits(
        make_bert(), tokenizer=make_tokenizer(), inputs=iter(texts), batch_size=2, max_length=POSITIONS
    )
    answered, logits = zip(*found, strict=True)
    assert list(answered) == texts
    np.testing.assert_allclose(np.stack(logits), one_by_one(texts).numpy(), atol=2e-5)


def test_input_is_read_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WINDOW_TEXTS", 64)
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield "w1 w2"

    stream = sequence_logits(make_bert(), tokenizer=make_tokenizer(), inputs=endless(), batch_size=1, max_length=8)
    next(stream)
    assert read <= 3 * 64
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("batch_size", "tokens"), [(None, 40), (3, 40), (2, 1000), (None, 1)])
def test_batches_hold_every_sequence_once_within_their_limits(batch_size: int | None, tokens: int) -> None:
    lengths = [5, 30, 7, 41, 7, 12, 1, 20, 19, 3]
    batches = list(plan_batches(lengths, batch_size=batch_size, tokens_per_batch=tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) <= (batch_size or len(batch))
        assert len(batch) == 1 or len(batch) * longest <= tokens


def test_long_sequences_have_few_padded_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_STEP_FROM", 8)
    seen = set()
    model, tokenizer = make_bert(), make_tokenizer()
    limit = POSITIONS
    model.register_forward_pre_hook(lambda _, __, given: seen.add(given["input_ids"].shape[1]), with_kwargs=True)
    texts = [" ".join(["w1"] * count) for count in range(1, limit + 9)]
    found = sequence_logits(model, tokenizer=tokenizer, inputs=texts, max_length=limit, tokens_per_batch=1)
    np.testing.assert_allclose(np.stack([logits for _, logits in found]), one_by_one(texts).numpy(), atol=2e-5)
    assert max(seen) == limit
    assert all(length <= 8 or length % 8 == 0 for length in seen)


def test_an_error_of_the_input_comes_in_its_place() -> None:
    def broken():
        yield from ["w1"] * 3
        raise OSError("the disk is gone")

    stream = sequence_logits(make_bert(), tokenizer=make_tokenizer(), inputs=broken(), max_length=8)
    with pytest.raises(OSError, match="the disk is gone"):
        list(stream)


def test_result_and_files(tmp_path: Path) -> None:
    texts = make_texts(12)
    wanted = one_by_one(texts).argmax(-1)
    labels = wanted.clone()
    labels[:3] = (labels[:3] + 1) % 3
    examples = make_examples("mnli", texts=texts, labels=labels.tolist())
    result = evaluate_examples(
        make_bert(), tokenizer=make_tokenizer(), examples=examples,
        baselines=[BaselineScore("majority class", {"accuracy": 0.5})],
    )  # fmt: skip
    assert result.metrics == {"accuracy": 0.75}
    assert result.main_score == 0.75
    assert sum(map(sum, result.confusion or ())) == 12
    assert sum((result.confusion or ())[i][i] for i in range(3)) == 9
    assert result.interval.low < 0.75 < result.interval.high
    written = json.loads(result.write(tmp_path / "eval", name="mnli").read_text())
    assert written["baselines"] == [{"name": "majority class", "metrics": {"accuracy": 0.5}}]
    lines = (tmp_path / "eval" / "mnli-predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == texts
    assert [row["correct"] for row in rows] == [False] * 3 + [True] * 9
    assert rows[0]["place"] == "file:0"


def test_regression_of_pairs() -> None:
    texts = make_texts(6)
    examples = make_examples("stsb", texts=texts, labels=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], pairs=texts[::-1])
    model = make_bert(num_labels=1).train()
    result = evaluate_examples(model, tokenizer=make_tokenizer(), examples=examples)
    assert result.confusion is None
    assert set(result.metrics) == {"pearson", "spearman", "combined_score"}
    assert result.predictions[2]["text_pair"] == texts[3]
    assert model.training


@pytest.mark.parametrize("names", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pairs_are_scored_as_they_are_trained(names: list[str], side: str) -> None:
    model, tokenizer, texts = make_bert(), make_tokenizer(), make_texts(12)
    tokenizer.model_input_names, tokenizer.truncation_side = names, side
    examples = make_examples("mnli", texts=texts, labels=[0] * 12, pairs=texts[::-1])
    types = reads_token_types(model.config, tokenizer=tokenizer)
    encoded = encode_examples(examples, tokenizer=tokenizer, max_length=POSITIONS, token_type_ids=types)
    batch = collate_examples(encoded, np.arange(12), pad_id=tokenizer.pad_token_id)
    batch.pop("labels")
    with torch.inference_mode():
        trained = model(**batch).logits.numpy()
    assert ("token_type_ids" in batch) == ("token_type_ids" in names)
    pairs = list(zip(texts, texts[::-1], strict=True))
    found = sequence_logits(model, tokenizer=tokenizer, inputs=pairs, max_length=POSITIONS)
    np.testing.assert_allclose(np.stack([logits for _, logits in found]), trained, atol=2e-5)


def test_a_model_of_one_token_type_is_given_none() -> None:
    model, tokenizer = make_bert(), make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model.config.type_vocab_size = 1
    model.register_forward_pre_hook(lambda _, __, given: seen.append(set(given)), with_kwargs=True)
    seen: list[set[str]] = []
    list(sequence_logits(model, tokenizer=tokenizer, inputs=[("w1", "w2")], max_length=8))
    assert seen == [{"input_ids", "attention_mask"}]


def test_hidden_labels_and_empty_splits_are_refused() -> None:
    examples = make_examples("sst2", texts=["w1"], labels=[1])
    empty = make_examples("sst2", texts=[], labels=[])
    for split in (replace(examples, labels=None), empty):
        with pytest.raises(InputError, match="no labelled examples"):
            evaluate_examples(make_bert(), tokenizer=make_tokenizer(), examples=split)


def test_position_limit_prefers_what_is_smaller() -> None:
    tokenizer = make_tokenizer()
    assert position_limit(make_bert(), tokenizer=tokenizer) == POSITIONS
    tokenizer.model_max_length = 8
    assert position_limit(make_bert(), tokenizer=tokenizer) == 8
