"""Tasks: GLUE files in all their spellings, custom files, and labels that cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sortyard.data.glue import TASKS
from sortyard.data.options import TaskOptions
from sortyard.data.tasks import load_examples, task_of
from sortyard.errors import InputError

Writer = Callable[..., Path]

ROWS = {  # published sizes, or those of the subset at hand: see the README beside the data
    "cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "qqp": (2000, 7600),
    "mnli": (15891, 9815), "qnli": (None, 5463), "rte": (2490, 277), "wnli": (635, 71),
}  # fmt: skip


def refused(options: TaskOptions, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        load_examples(options, split)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", sorted(ROWS))
def test_glue_tables_load(shared_data: Path, name: str) -> None:
    options = TaskOptions(name=name, data=str(shared_data / "glue"))
    for split, count in zip(("train", "dev"), ROWS[name], strict=True):
        if count is None:
            assert "no file of the split 'train' of qnli" in refused(options)
            continue
        examples = load_examples(options, split)
        assert len(examples) == count
        assert examples.skipped.total == 0
        assert examples.labels is not None
        assert (examples.pairs is not None) == TASKS[name].is_pair
        if name == "stsb":
            assert examples.labels.dtype == np.float32
            assert (examples.labels.min(), examples.labels.max()) == (0, 5)
        else:
            assert set(examples.labels.tolist()) == set(range(TASKS[name].num_labels))


@pytest.mark.parametrize(
    ("name", "train", "dev", "header", "row"),
    [
        ("sst2", "train.tsv", "dev.tsv", "sentence\tlabel", "so \"good\"\t1"),
        ("cola", "train.tsv", "dev.tsv", None, "gj04\t1\t\tso good"),
        ("mrpc", "mrpc_train.tsv", "mrpc_dev.tsv", "\ufeffQuality\t#1 ID\t#1 String\t#2 String", "1\t8\ta\tb"),
        ("qqp", "train.tsv", "validation.tsv", "id\tqid1\tquestion1\tquestion2\tis_duplicate", "1\t2\ta\tb\t1"),
        ("qnli", "train.tsv", "dev.tsv", "index\tquestion\tsentence\tlabel", "0\ta\tb\tnot_entailment"),
        ("rte", "train.tsv", "valid.tsv", "index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment"),
        ("mnli", "train.tsv", "dev_matched.tsv", "sentence1\tsentence2\tgold_label", "a\tb\tneutral"),
    ],
)  # fmt: skip
def test_the_official_files_are_understood(
    tmp_path: Path, name: str, train: str, dev: str, header: str | None, row: str
) -> None:
    other = row.replace("not_entailment", "entailment").replace("neutral", "contradiction")
    if other == row:
        other = "\t".join("0" if field == "1" else field for field in row.split("\t"))
    lines = [*([header] if header else []), row, other]
    for file in (train, dev):
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    for split in ("train", "dev"):
        examples = load_examples(TaskOptions(name=name, data=str(tmp_path)), split)  # type: ignore[arg-type]
        assert len(examples) == 2
        assert examples.labels is not None
        assert examples.labels[0] == 1


def test_mismatched_development_and_hidden_test_labels(write_jsonl: Writer, tmp_path: Path) -> None:
    row = {"premise": "a", "hypothesis": "b", "label": "neutral"}
    write_jsonl([row, {**row, "label": 0}])
    write_jsonl([row], "dev_mismatched.jsonl")
    write_jsonl([{**row, "label": -1}], "test.jsonl")
    options = TaskOptions(name="mnli", data=str(tmp_path))
    mismatched = load_examples(options, "dev_mismatched").labels
    assert mismatched is not None
    assert mismatched.tolist() == [1]
    assert load_examples(options, "test").labels is None


def test_custom_labels_are_discovered_from_the_training_split(write_jsonl: Writer, tmp_path: Path) -> None:
    data = write_jsonl([{"review": "a", "mood": mood} for mood in ("sad", "glad", "mad", "sad")])
    dev = write_jsonl([{"review": "a", "mood": "mad"}], "later.jsonl")
    options = TaskOptions(data=str(data), dev=str(dev), text_column="review", label_column="mood")
    train, held = load_examples(options, "train"), load_examples(options, "dev")
    assert train.task.label_names == held.task.label_names == ("glad", "mad", "sad")
    assert train.labels is not None
    assert train.labels.tolist() == [2, 0, 1, 2]
    assert held.labels is not None
    assert held.labels.tolist() == [1]
    assert train.places[1] == f"{data}:2"


def test_a_stratified_share_is_held_out_where_there_is_no_development_file(write_jsonl: Writer) -> None:
    data = write_jsonl([{"text": f"text {number}", "label": int(number % 5 == 0)} for number in range(200)])
    options = TaskOptions(data=str(data), dev_fraction=0.2, split_seed=4)
    train, dev = load_examples(options, "train"), load_examples(options, "dev")
    assert len(train) + len(dev) == 200
    assert not set(train.texts) & set(dev.texts)
    assert np.bincount(dev.labels).tolist() == [32, 8]
    assert load_examples(options, "dev").texts == dev.texts
    few = load_examples(options.model_copy(update={"max_train_examples": 30}), "train")
    assert len(few) == 30
    assert set(few.texts) <= set(train.texts)


def test_custom_pairs_and_regression(write_jsonl: Writer) -> None:
    data = write_jsonl([{"text": "a", "other": "b", "label": value} for value in (1, "2.5", 0.5)])
    options = TaskOptions(data=str(data), type="regression", text_pair_column="other", dev_fraction=0.4)
    train = load_examples(options, "train")
    assert train.pairs == ["b"] * len(train)
    assert train.labels is not None
    assert train.labels.dtype == np.float32
    assert task_of(options).num_labels == 1


GOOD = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"text": "c"}, ":3: label None: the label is missing"),
        ({"text": "c", "label": ""}, ":3: label '': the label is missing"),
        ({"text": "c", "label": 0.5}, ":3: label 0.5: a class is an integer or a string; set type: regression"),
        ({"text": "c", "label": [1]}, ":3: label [1]: a class is"),
        ({"text": "c", "label": -1}, ":3: label -1: a hidden or negative label"),
        ({"text": "c", "label": 7}, "the integer labels are 0, 1, 7; use 0 ... 2 without gaps"),
    ],
)  # fmt: skip
def test_unusable_custom_labels_are_refused_with_their_row(
    write_jsonl: Writer, bad: dict[str, Any], expected: str
) -> None:
    data = write_jsonl([*GOOD, bad])
    message = refused(TaskOptions(data=str(data)))
    assert expected in message
    assert str(data) in message


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (2, "label 2: expected 0 ... 1 or one of 'negative', 'positive'"),
        ("great", "label 'great': expected 0 ... 1 or one of"),
        (-1, "label -1: the label is hidden"),
        (None, "label None: the label is missing"),
    ],
)  # fmt: skip
def test_unusable_glue_labels_are_refused_with_their_row(write_jsonl: Writer, label: Any, expected: str) -> None:
    data = write_jsonl([{"sentence": "a", "label": "positive"}, {"sentence": "b", "label": label}])
    assert refused(TaskOptions(name="sst2", data=str(data))).startswith(f"{data}:2: {expected}")


@pytest.mark.parametrize("labels", [[1, 3, 2], [1.0, 3.0, 2.0], ["1", "3", "2"], ["1.0", "3.0", "2.0"]])
@pytest.mark.parametrize("names", [("1", "2", "3"), ("1.0", "2.0", "3.0")])
def test_a_number_is_the_class_of_that_name(write_jsonl: Writer, labels: list[Any], names: tuple[str, ...]) -> None:
    data = write_jsonl([{"text": "a", "label": label} for label in labels])
    found = load_examples(TaskOptions(data=str(data), dev=str(data)), "dev", label_names=names).labels
    assert found is not None
    assert found.tolist() == [0, 2, 1]


@pytest.mark.parametrize("label", [0, 4, 0.0, "0", True])
def test_a_number_that_names_no_class_is_refused(write_jsonl: Writer, label: Any) -> None:
    data = write_jsonl([{"text": "a", "label": 1}, {"text": "b", "label": label}])
    with pytest.raises(InputError, match=rf":2: label {label!r}: expected one of '1', '2', '3'"):
        load_examples(TaskOptions(data=str(data), dev=str(data)), "dev", label_names=("1", "2", "3"))


@pytest.mark.parametrize("target", ["NaN", "Infinity", '"high"', "null"])
def test_regression_targets_have_to_be_finite(tmp_path: Path, target: str) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text(f'{{"text": "a", "label": 1.5}}\n{{"text": "b", "label": {target}}}\n')
    assert f"{data}:2: " in refused(TaskOptions(data=str(data), type="regression"))


@pytest.mark.parametrize("label", [1, "yes"])
def test_one_class_is_refused(write_jsonl: Writer, label: Any) -> None:
    data = write_jsonl([{"text": "a", "label": label}] * 3)
    assert "all 3 examples have one class only" in refused(TaskOptions(data=str(data)))


def test_empty_and_unsound_texts_are_skipped_and_counted(write_jsonl: Writer) -> None:
    bad = [None, "", 5, "nul \x00", "half \ud800"]
    data = write_jsonl([*GOOD, *({"text": text, "label": 1} for text in bad)])
    examples = load_examples(TaskOptions(data=str(data), dev=str(data)), "train")
    assert len(examples) == 2
    assert examples.skipped.counts == {
        "empty text": 2, "text is not a string but int": 1, "NUL byte": 1, "lone surrogate": 1,
    }  # fmt: skip


def test_rows_skipped_for_one_reason_at_two_places_are_added(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_bytes(b'{"text": "a", "label": 0}\n\0\n{"text": "nul \\u0000", "label": 0}\n{"text": "b", "label": 1}\n')
    skipped = load_examples(TaskOptions(data=str(data), dev=str(data)), "train").skipped
    assert skipped.counts == {"NUL byte": 2}
    assert skipped.places == {"NUL byte": [f"{data}:2", f"{data}:3"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"data": "{folder}/missing.jsonl"}, "data: {folder}/missing.jsonl: there is no such file or folder"),
        ({"data": "{folder}"}, "no file of the split 'train' of custom; the folder holds a.jsonl"),
        ({"data": "{folder}/a.jsonl", "dev": "{folder}/b.jsonl"}, "dev: {folder}/b.jsonl: there is no such file"),
        ({"data": "{folder}/a.jsonl", "label_column": "lable"}, "no column 'lable'; it has 'text', 'label'; did you"),
        ({"data": "{folder}/a.jsonl", "text_pair_column": "second"}, "no column 'second'"),
        ({"data": "{folder}/notes.txt"}, "a text file has no labels"),
        ({"data": "hub"}, '"hub" holds the nine GLUE tasks'),
        ({"data": "{folder}/blank.jsonl"}, "no example is left: skipped 1 x empty text"),
    ],
)  # fmt: skip
def test_missing_files_and_columns_are_named(
    write_jsonl: Writer, tmp_path: Path, options: dict[str, str], expected: str
) -> None:
    write_jsonl(GOOD, "a.jsonl")
    if "notes" in options["data"] or "blank" in options["data"]:
        (tmp_path / "notes.txt").write_text("x")
        write_jsonl([{"text": " ", "label": 1}], "blank.jsonl")
    filled = {name: value.format(folder=tmp_path) for name, value in options.items()}
    assert expected.format(folder=tmp_path) in refused(TaskOptions(**filled))  # type: ignore[arg-type]


def test_glue_from_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load(name: str, config: str, **options: object) -> list[dict[str, Any]]:
        calls.append((name, config, options["split"]))
        return [{"premise": "a", "hypothesis": "b", "label": label} for label in (0, 1, 2)]

    monkeypatch.setattr(datasets, "load_dataset", load)
    options = TaskOptions(name="mnli", data="hub")
    for split in ("train", "dev", "dev_mismatched"):
        assert len(load_examples(options, split)) == 3  # type: ignore[arg-type]
    assert calls == [
        ("nyu-mll/glue", "mnli", name) for name in ("train", "validation_matched", "validation_mismatched")
    ]


def test_a_thousand_mutilated_files_give_examples_or_one_sentence(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = [json.dumps({"text": f"text {number}", "label": number % 2}) for number in range(8)]
    good = ("\n".join(lines) + "\n").encode()
    data = tmp_path / "train.jsonl"
    loaded, messages = 0, []
    for _ in range(1000):
        broken = bytearray(good)
        for _ in range(generator.integers(1, 6)):
            place = int(generator.integers(len(broken)))
            broken[place : place + int(generator.integers(0, 4))] = generator.bytes(int(generator.integers(0, 4)))
        data.write_bytes(bytes(broken[: int(generator.integers(1, len(broken) + 1))]))
        try:
            load_examples(TaskOptions(data=str(data), dev=str(data)), "train")
            loaded += 1
        except InputError as error:
            messages.append(str(error))
    assert min(loaded, len(messages)) > 50
    assert all(str(data) in message for message in messages)
