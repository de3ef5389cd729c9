"""The gate study's natural tasks on made-up text: what is held out, and what is scored."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sortyard.errors import InputError
from sortyard.studies.gates import mixed_labels, mixed_text, sources
from sortyard.studies.gates.arms import CONTEXT, build_arm
from sortyard.studies.gates.mixed_labels import MixedLabelsTask
from sortyard.studies.gates.mixed_text import MixedTextTask
from sortyard.studies.gates.sources import Corpora, read_corpora
from sortyard.studies.gates.training import train_cell

LENGTH = mixed_text.LENGTH


def silent(_: str) -> None:
    """Say nothing."""


def made_up(words: int, *, letters: str, seed: int) -> str:
    drawn = random.Random(f"{letters} {seed}")
    return " ".join("".join(drawn.choices(letters, k=drawn.randint(2, 4))) for _ in range(words))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, str], ...]:
    folder = tmp_path_factory.mktemp("texts")
    for name, letters in (("first", "abcd"), ("second", "wxyz")):
        rows = [{"text": made_up(400, letters=letters, seed=seed)} for seed in range(30)]
        rows.append(rows[0])  # a duplicate
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tuple((name, str(folder / f"{name}.jsonl")) for name in ("first", "second"))


@pytest.fixture(scope="module")
def corpora(given: tuple[tuple[str, str], ...]) -> Corpora:
    return read_corpora(given, length=LENGTH, seed=0, say=silent)


def test_rows_are_whole_mixed_and_of_either_source(corpora: Corpora) -> None:
    for passages in (corpora.training, corpora.held_out):
        assert set(passages.lengths) == {LENGTH - 2}
        assert set(passages.sources) == {0, 1}
        assert (np.diff(passages.sources) != 0).sum() > 2  # not one source after the other
    assert len(corpora.held_out.pieces) < 0.3 * len(corpora.training.pieces)


def test_what_is_held_out_is_of_other_documents(
    given: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    real = sources._passages
    monkeypatch.setattr(
        sources, "_passages", lambda documents, *rest, **more: seen.append(documents) or real(documents, *rest, **more)
    )
    read_corpora(given, length=LENGTH, seed=0, say=silent)
    training, held_out = seen
    for kept, aside in zip(training, held_out, strict=True):
        assert len(kept) + len(aside) == 30
        assert sum(map(len, aside)) >= (sum(map(len, kept)) + sum(map(len, aside))) // 10
        assert len(aside) <= 4
        assert not set(kept) & set(aside)


def test_a_source_gives_no_more_than_its_share(
    given: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TRAINING_CHARACTERS", 4000)
    monkeypatch.setattr(sources, "HELD_OUT_CHARACTERS", 1)
    monkeypatch.setattr(sources, "DOCUMENT_CHARACTERS", 1000)
    told: list[str] = []
    read_corpora(given, length=32, seed=0, say=told.append)
    assert told[0] == "first: 4,000 characters to train on, 1,000 held out"


def test_a_text_of_two_sources_is_of_the_first_alone(given: tuple[tuple[str, str], ...], tmp_path: Path) -> None:
    (name, path), _ = given
    own = [json.dumps({"text": made_up(400, letters="mnop", seed=seed)}) for seed in range(10)]
    (tmp_path / "more.jsonl").write_text("\n".join([Path(path).read_text().strip(), *own, '{"text": ""}']) + "\n")
    told: list[str] = []
    found = read_corpora(((name, path), ("more", str(tmp_path / "more.jsonl"))), length=LENGTH, seed=0, say=told.append)
    assert told[1].partition(" (")[0] == "more: skipped 1 x empty text"
    assert sum(found.training.sources == 1) < 0.5 * sum(found.training.sources == 0)
    with pytest.raises(InputError, match=r"--data same=.*fewer than two documents of its own"):
        read_corpora(((name, path), ("same", path)), length=LENGTH, seed=0, say=silent)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("one two three", "fewer than two documents"), ("a b\n\n\nc d\n\n\ne f", "too few of its documents")],
    ids=["one", "short"],
)
def test_a_source_that_does_not_do_is_named(
    text: str, problem: str, given: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(InputError, match=rf"--data bad=.*{problem}"):
        read_corpora((given[0], ("bad", str(tmp_path / "bad.txt"))), length=LENGTH, seed=0, say=silent)


def test_the_loss_is_the_mean_over_targets_and_sources_add_up(corpora: Corpora) -> None:
    task = MixedTextTask(corpora)
    model = build_arm(CONTEXT, task.trainee, seed=0)
    found = task.score(model)
    sums, counts = [0.0, 0.0], [0, 0]
    model.eval()
    for number, batch in enumerate(task._held_out):
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        for row, labels in enumerate(batch["labels"]):
            source = corpora.held_out.sources[number * mixed_text.BATCH_SIZE + row]
            sums[source] += float(F.cross_entropy(logits[row], labels, ignore_index=-100, reduction="sum"))
            counts[source] += int((labels != -100).sum())
    assert found["score"] == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert found["by_source"]["second"] == pytest.approx(sums[1] / counts[1], rel=1e-5)
    assert len(found["mutual_information"]) == 2
    assert model.training is False or model.eval() is model


def test_a_seed_orders_the_training_and_not_what_is_held_out(corpora: Corpora) -> None:
    task = MixedTextTask(corpora)
    first, again, other = (task.material(seed).step(0)[0]["input_ids"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool((task.material(0).step(0)[0]["attention_mask"] == 1).all())


def test_other_text_has_another_digest(corpora: Corpora, given: tuple[tuple[str, str], ...]) -> None:
    assert MixedTextTask(corpora).data == MixedTextTask.read(given, say=silent).data
    assert MixedTextTask(corpora).data != MixedTextTask.read(given[::-1], say=silent).data
    renamed = (("other", given[0][1]), given[1])
    assert MixedTextTask(corpora).data != MixedTextTask.read(renamed, say=silent).data


def test_mixed_text_learns(corpora: Corpora) -> None:
    task = MixedTextTask(corpora)
    cell = train_cell(task, "static", seed=0, steps=8)
    start = task.score(build_arm("static", task.trainee, seed=0))
    assert cell["score"] < start["score"] - 0.1


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, str], ...]:
    folder = tmp_path_factory.mktemp("labels")
    for name, letters, classes in (("two", "abcd", 2), ("three", "wxyz", 3)):
        rows = [
            {"text": f"{made_up(6, letters=letters, seed=i)} {'kmn'[i % classes] * 3}", "label": i % classes}
            for i in range(120)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tuple((name, str(folder / f"{name}.jsonl")) for name in ("two", "three"))


def test_classes_of_several_sources_stand_side_by_side(labelled: tuple[tuple[str, str], ...]) -> None:
    told: list[str] = []
    task = MixedLabelsTask.read(labelled, say=told.append)
    assert told == [
        "two: 96 examples to train on, 24 held out, 2 classes", "three: 96 examples to train on, 24 held out, 3 classes"
    ]  # fmt: skip
    assert task.trainee.fields["num_labels"] == 5
    labels = torch.cat([task.material(0).step(step)[0]["labels"] for step in range(6)])
    assert torch.bincount(labels, minlength=5).tolist() == [48, 48, 32, 32, 32]
    held_out = torch.from_numpy(task._held_out.labels)
    assert torch.equal(held_out >= 2, task._held_out_sources == 1)


def relabelled(path: str, *, folder: Path) -> str:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    changed = folder / "relabelled.jsonl"
    changed.write_text("".join(json.dumps(row | {"label": 1 - row["label"]}) + "\n" for row in rows))
    return str(changed)


def test_other_labels_and_names_have_another_digest(labelled: tuple[tuple[str, str], ...], tmp_path: Path) -> None:
    (name, path), three = labelled
    others = [((name, relabelled(path, folder=tmp_path)), three), (("other", path), three)]
    digests = [MixedLabelsTask.read(given, say=silent).data for given in (labelled, labelled, *others)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_what_is_held_out_is_of_other_examples(labelled: tuple[tuple[str, str], ...], tmp_path: Path) -> None:
    rows = Path(labelled[0][1]).read_text()
    (tmp_path / "twice.jsonl").write_text(rows * 2)
    told: list[str] = []
    MixedLabelsTask.read((labelled[1], ("twice", str(tmp_path / "twice.jsonl"))), say=told.append)
    trained, held_out = (int(told[1].split()[place]) for place in (1, 6))
    assert trained == 192
    assert 0 < held_out < 24  # of 48, those whose twin is not trained on
    same = "".join(json.dumps({"text": f"a {i % 2}", "label": i % 2}) + "\n" for i in range(40))
    (tmp_path / "same.jsonl").write_text(same)
    with pytest.raises(InputError, match=r"--labels same=.*is in the training examples, too"):
        MixedLabelsTask.read((labelled[0], ("same", str(tmp_path / "same.jsonl"))), say=silent)


def test_mixed_labels_learn_and_every_source_counts_the_same(labelled: tuple[tuple[str, str], ...]) -> None:
    cell = train_cell(MixedLabelsTask.read(labelled, say=silent), CONTEXT, seed=0, steps=60)
    assert cell["score"] == pytest.approx(sum(cell["by_source"].values()) / 2)
    assert cell["by_source"]["two"] > 0.8
    assert set(mixed_labels.settings()) >= {"options", "lr"}


def test_a_table_that_cannot_be_read_is_named(labelled: tuple[tuple[str, str], ...], tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a", "other": 1}\n')
    with pytest.raises(InputError, match=r"--labels x=.*there is no column 'label'"):
        MixedLabelsTask.read((labelled[0], ("x", str(tmp_path / "x.jsonl"))), say=silent)
