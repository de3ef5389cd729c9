"""The parts of `study sparsity`: knees of made-up curves, settings that meet what was asked, the order of cells."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sortyard import SortyardConfig, SortyardForMaskedLM
from sortyard.errors import InputError
from sortyard.model.attention.dense import DenseCore
from sortyard.studies.sparsity.cores import (
    DENSE,
    LOCAL,
    SELECTIONS,
    TREE,
    Setting,
    attention_layers,
    base_spec,
    layer_sparsity,
    swap_attention,
)
from sortyard.studies.sparsity.knee import Knee, find_knee, knee_text
from sortyard.studies.sparsity.plan import ADAPTED, AS_IS, SETTING, TASK, Cell, SparsityPlan
from sortyard.studies.sparsity.settings import capture_projections, find_setting
from sortyard.studies.sparsity.sparsity_page import sparsity_figures
from sortyard.studies.sparsity.study import HELD_OUT_TOKENS, _expected
from sortyard.studies.sparsity.summary import summarise
from sortyard.studies.sparsity.texts import LabelledText, read_labelled, read_text
from tests.studies.sparsity_model import made_up, tiny_model

LENGTH = 256


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([(0.5, 0.0), (0.9, 0.02)], Knee("at", 0.7)),
        ([(0.9, 0.02), (0.5, 0.0)], Knee("at", 0.7)),  # whatever their order
        ([(0.5, -0.01), (0.7, 0.0), (0.8, 0.01), (0.9, 0.5)], Knee("at", 0.8)),
        ([(0.5, 0.0), (0.7, 0.02), (0.9, 0.0)], Knee("at", 0.6)),  # the first crossing counts
        ([(0.5, 0.0), (0.99, 0.009)], Knee("never", 0.99)),
        ([(0.5, 0.03), (0.9, 0.5)], Knee("at once", 0.5)),
    ],
    ids=["between", "unordered", "on-a-point", "first-crossing", "never", "at-once"],
)
def test_the_knee_of_a_curve(points: list[tuple[float, float]], knee: Knee) -> None:
    found = find_knee(points)
    assert found is not None
    assert (found.where, found.sparsity) == (knee.where, pytest.approx(knee.sparsity))


def test_a_knee_in_words() -> None:
    assert find_knee([]) is None
    assert knee_text(None) == "-"
    words = [knee_text(Knee(where, 0.912).record()) for where in ("at", "never", "at once")]
    assert words == ["91.2 %", "not up to 91.2 %", "before 91.2 %"]


@pytest.fixture(scope="module")
def projections() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(1, 2, LENGTH, 8), torch.randn(1, 2, LENGTH, 8)) for _ in range(2)]


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_settings_are_as_sparse_as_asked(
    selection: str, sparsity: float, projections: list[tuple[Tensor, Tensor]]
) -> None:
    setting, measured = find_setting(selection, sparsity, projections=projections)
    values = [layer_sparsity(setting, q, k, layer=layer) for layer, (q, k) in enumerate(projections)]
    assert measured == pytest.approx(sum(values) / 2)
    assert sparsity <= measured <= sparsity + 0.04
    assert Setting.of_record(selection, json.loads(json.dumps(setting.record()))) == setting


def test_the_sparsest_is_taken_where_more_is_asked_than_there_is(projections: list[tuple[Tensor, Tensor]]) -> None:
    _, most = find_setting(TREE, 0.999, projections=projections)
    _, less = find_setting(TREE, 0.9, projections=projections)
    assert less < most < 0.999


def small_model() -> SortyardForMaskedLM:
    torch.manual_seed(0)
    config = SortyardConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=LENGTH, attention="dense", num_experts=1,
    )  # fmt: skip
    return SortyardForMaskedLM(config)


def settings_without_gaps() -> dict[str, Setting]:
    """Every selection with so wide a budget that no pair is left out."""
    whole = {"local_window": 64, "bucket_size": 8, "near_buckets": 8, "beam": 8}
    specs = {name: base_spec(name, **whole) for name in ("tree", "positions")}
    specs["rounds"] = base_spec("rounds", local_window=64)
    found = {name: Setting(name, spec=spec) for name, spec in specs.items()}
    return {DENSE: Setting(DENSE), "random": Setting("random", keys=66), "local": Setting("local", keys=130)} | found


@pytest.mark.parametrize("selection", [DENSE, *SELECTIONS])
def test_nothing_left_out_is_dense_attention_and_gradients_pass(selection: str) -> None:
    model, ids = small_model(), torch.randint(5, 50, (2, 64), generator=torch.Generator().manual_seed(1))
    assert all(isinstance(layer.core, DenseCore) for layer in attention_layers(model))
    labels = ids.clone()
    expected = model(input_ids=ids, labels=labels)
    expected.loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    swap_attention(model, settings_without_gaps()[selection])
    found = model(input_ids=ids, labels=labels)
    found.loss.backward()
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_projections_are_of_heads_that_change_by_layer() -> None:
    found = capture_projections(small_model(), torch.arange(5, 37)[None])
    assert [tuple(q.shape) for q, _ in found] == [(1, 2, 32, 8)] * 2


def plan(**changes: object) -> SparsityPlan:
    usual: dict[str, object] = {
        "model": "/somewhere/run", "texts": ("/somewhere/a.jsonl",), "task_data": "", "label_column": "label",
        "labels": 8, "passages": 96, "lengths": (64,), "task_lengths": (64,), "sparsities": (0.5, 0.95),
        "selections": ("tree", "local"),
        "adapt_steps": 2, "task_steps": 2, "seeds": 2, "minutes": float("inf"), "jobs": 1, "threads": 1,
        "device": "cpu",
    }  # fmt: skip
    return SparsityPlan(**usual | changes)  # type: ignore[arg-type]


def test_important_cells_come_first() -> None:
    cells = plan(task_data="t.jsonl").cells()
    assert [cell.measure for cell in cells[:5]] == [AS_IS] * 5
    assert cells[5:8] == [
        Cell(ADAPTED, 64, DENSE, 0.0), Cell(TASK, 64, DENSE, 0.0), Cell(ADAPTED, 64, TREE, 0.95),
    ]  # fmt: skip
    seeds = [cell.seed for cell in cells[5:]]
    assert seeds == sorted(seeds)
    assert len({cell.key for cell in cells}) == len(cells) == 25
    assert "/somewhere" not in plan().command()
    assert plan(device="cuda").command().endswith(" --device cuda --jobs 1")


def test_times_that_nobody_knows_are_guessed_by_what_the_machine_did_before() -> None:
    study = plan(lengths=(64,), adapt_steps=10)
    cell, none = Cell(ADAPTED, 64, DENSE, 0.0), SimpleNamespace(cells={})
    guessed = _expected(cell, study, none)  # type: ignore[arg-type]
    assert guessed == pytest.approx(10 * 2048 / 2500)
    scored = Cell(AS_IS, 64, DENSE, 0.0)
    fast = SimpleNamespace(cells={scored.key: {**scored._asdict(), "seconds": HELD_OUT_TOKENS / 8000 / 6}})
    assert _expected(cell, study, fast) == pytest.approx(guessed / 6)  # type: ignore[arg-type]
    fast.cells[cell.key] = {**cell._asdict(), "seconds": 5.0}
    assert _expected(cell, study, fast) == 5.0  # type: ignore[arg-type]


def test_falls_are_relative_to_dense_attention_with_the_same_seed() -> None:
    cells = {}
    for share, measured in ((0.5, 0.52), (0.9, 0.92)):
        cell = Cell(SETTING, 64, TREE, share)
        cells[cell.key] = {**cell._asdict(), "measured": measured}
    scores = {(DENSE, 0.0, 0): 0.8, (DENSE, 0.0, 1): 0.5, (TREE, 0.5, 0): 0.8, (TREE, 0.5, 1): 0.5,
              (TREE, 0.9, 0): 0.784, (TREE, 0.9, 1): 0.48}  # fmt: skip
    for (selection, share, seed), score in scores.items():
        cell = Cell(TASK, 64, selection, share, seed)
        cells[cell.key] = {**cell._asdict(), "score": score}
    (panel,) = summarise(cells)["panels"]
    tree = panel["selections"][TREE]
    assert [point["sparsity"] for point in tree["points"]] == [0.52, 0.92]
    assert str(tree["points"][0]["fall_by_seed"]["0"]) == "0.0"  # and not -0.0
    assert tree["points"][1]["fall_by_seed"] == pytest.approx({"0": 0.02, "1": 0.04})
    assert tree["knee"]["sparsity"] == pytest.approx(0.52 + 0.4 / 3)
    assert tree["knee_by_seed"]["0"]["sparsity"] == pytest.approx(0.72)


@pytest.mark.parametrize(("worst", "is_cut"), [(0.05, False), (1.2, True)])
def test_a_picture_shows_falls_of_one_per_cent(worst: float, is_cut: bool) -> None:
    cells = {}
    for selection, share, score in ((DENSE, 0.0, 4.0), (TREE, 0.5, 4.01), (LOCAL, 0.5, 4.0 * (1 + worst))):
        cell = Cell(AS_IS, 64, selection, share)
        cells[cell.key] = {**cell._asdict(), "score": score}
        setting = Cell(SETTING, 64, selection, share)
        cells[setting.key] = {**setting._asdict(), "measured": share}
    (figure,) = sparsity_figures(SimpleNamespace(summary=summarise(cells)))  # type: ignore[arg-type]
    assert figure.layout["yaxis"].get("range") == ([-0.5, 10.0] if is_cut else None)


def test_passages_are_whole_and_of_other_documents(tmp_path: Path) -> None:
    _, tokenizer = tiny_model()
    path = tmp_path / "novels.jsonl"
    path.write_text("".join(json.dumps({"text": made_up(300, seed=seed)}) + "\n" for seed in range(6)))
    found = read_text([str(path)], tokenizer=tokenizer, lengths=[32, 64], held_out_tokens=128, seed=0)
    assert {length: len(text.held_out.pieces) for length, text in found.items()} == {32: 4, 64: 2}
    assert all(set(text.training.lengths) == {length - 2} for length, text in found.items())
    seen = {tuple(piece) for piece in found[32].training.pieces}
    assert not any(tuple(piece) in seen for piece in found[32].held_out.pieces)
    with pytest.raises(InputError, match="0 documents have the 4,096 tokens of a passage"):
        read_text([str(path)], tokenizer=tokenizer, lengths=[4096], held_out_tokens=128, seed=0)


@pytest.mark.parametrize(("names", "split"), [("abab", "other documents"), ("abcd", "other parts")])
def test_labels_are_of_passages_and_documents_are_held_out_where_there_are_several(
    names: str, split: str, tmp_path: Path
) -> None:
    _, tokenizer = tiny_model()
    path = tmp_path / "novels.jsonl"
    rows = [{"text": made_up(300, seed=seed), "author": name} for seed, name in enumerate(names)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(
        column: str = "author", *, length: int = 32, most_labels: int = 8, most_passages: int = 96
    ) -> LabelledText:
        return read_labelled(
            str(path), column=column, tokenizer=tokenizer, lengths=[length], most_labels=most_labels,
            most_passages=most_passages, seed=0,
        )[length]  # fmt: skip

    found = read()
    assert found.split == split
    assert found.labels == tuple(sorted(set(names)))
    (ids, labels), (aside, _) = found.training, found.held_out
    assert ids.shape[1] == aside.shape[1] == 32
    assert set(labels.tolist()) == set(range(len(found.labels)))
    assert not {tuple(row) for row in ids.tolist()} & {tuple(row) for row in aside.tolist()}
    with pytest.raises(InputError, match="no column 'writer'"):
        read("writer")
    with pytest.raises(InputError, match="labels have several passages of 2,048 tokens"):
        read(length=2048)
    fewer = read(most_labels=2, most_passages=4)
    assert (len(fewer.labels), len(fewer.training[1]), len(fewer.held_out[1])) == (2, 6, 2)
