"""`study gates`: a small real run through the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sortyard.studies.gates import latent_mode, study
from tests.cli.test_start import HEAVY

ALL_ARMS = "context static shuffled frozen-random token-hash dense-active dense-total".split()  # noqa: SIM905
SMALL = ("study", "gates", "--arms", "context,static", "--seeds", "2", "--steps", "2,4", "--threads", "1", "--json")


@pytest.fixture(autouse=True)
def few_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_mode, "HELD_OUT_BATCHES", 1)


def test_every_arm_is_trained_and_written_down(sortyard: Callable, tmp_path: Path) -> None:
    words = ("study", "gates", "--seeds", "1", "--steps", "2", "--threads", "1", "--out", "there", "--json")
    ended = sortyard(*words)
    assert ended.status == 0, ended.err
    found = ended.json
    assert found["complete"] is True
    assert [cell["arm"] for cell in found["cells"].values()] == ALL_ARMS
    assert found["command"] == "sortyard study gates --seeds 1 --steps 2 --heads 4 --lr 0.003 --threads 1"
    stored = json.loads((tmp_path / "there" / "gates.json").read_text())
    assert stored == {key: value for key, value in found.items() if key != "files"}
    page = (tmp_path / "there" / "gates.html").read_text()
    for words_ in ("latent-mode, 2 steps", "dense-total", "What context gains over the arm"):
        assert words_ in page
    assert "latent-mode: 7 runs to train, about" in ended.err


def test_the_text_has_the_tables_and_the_finding(sortyard: Callable) -> None:
    out = sortyard(*(word for word in SMALL if word != "--json")).out
    for words in ("latent-mode, 4 steps: held-out accuracy, 2 seeds", "MFLOP a step", "expert tells, bits"):
        assert words in out
    assert "latent-mode, 2 steps: over a static gate the context gate gains" in out
    assert out.splitlines()[-1] == "gates.html"


def test_an_interrupted_run_goes_on_where_it_stopped(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int, int]] = []
    real = study.train_cell

    def train(task, arm, *, seed, steps):
        if len(trained) == 3:
            trained.append(("stop", 0, 0))
            raise KeyboardInterrupt
        trained.append((arm, seed, steps))
        return real(task, arm, seed=seed, steps=steps)

    monkeypatch.setattr(study, "train_cell", train)
    assert sortyard(*SMALL).status == 130
    stored = json.loads((tmp_path / "gates.json").read_text())
    assert (len(stored["cells"]), stored["complete"]) == (3, False)
    assert (tmp_path / "gates.html").exists()

    found = sortyard(*SMALL).json
    assert len(trained) == 4 + 5
    assert found["complete"] is True
    assert all(found["cells"][key] == cell for key, cell in stored["cells"].items())
    sortyard(*SMALL, "--fresh")
    assert len(trained) == 9 + 8


def test_cells_of_other_code_are_kept_and_say_so(sortyard: Callable, tmp_path: Path) -> None:
    sortyard(*SMALL, "--steps", "2")
    path = tmp_path / "gates.json"
    stored = json.loads(path.read_text())
    stored["code"] = "0" * 16
    for cell in stored["cells"].values():
        cell["code"] = "0" * 16
    path.write_text(json.dumps(stored))
    ended = sortyard(*SMALL)
    found = ended.json
    assert "4 of the 4 runs there are of other code; --fresh trains them anew" in ended.err
    assert "The runs are of 2 states of the code" in (tmp_path / "gates.html").read_text()
    codes = {key: cell["code"] for key, cell in found["cells"].items()}
    assert {code for key, code in codes.items() if "/2/" in key} == {"0" * 16}
    assert {code for key, code in codes.items() if "/4/" in key} == {found["code"]} != {"0" * 16}


def test_what_is_added_later_stands_beside_what_was_there(sortyard: Callable) -> None:
    sortyard(*SMALL, "--steps", "2")
    found = sortyard(*SMALL, "--steps", "3", "--arms", "context").json
    assert [(budget["steps"], list(budget["arms"])) for budget in found["summary"]["budgets"]] == [
        (2, ["context", "static"]), (3, ["context"])
    ]  # fmt: skip
    assert [line.split("--steps")[1][:2] for line in found["command"].splitlines()] == [" 2", " 3"]


def test_cells_of_other_data_or_settings_are_refused(sortyard: Callable, tmp_path: Path) -> None:
    sortyard(*SMALL, "--steps", "2")
    path = tmp_path / "gates.json"
    stored = json.loads(path.read_text())
    for change, message in (({"data": "x"}, "was trained on other data"), ({}, "other settings")):
        changed = json.loads(json.dumps(stored))
        changed["cells"]["latent-mode/2/context/seed0"] |= change
        if not change:
            changed["settings"]["latent-mode"]["lr"] = 1.0
        path.write_text(json.dumps(changed))
        ended = sortyard(*SMALL)
        assert ended.status == 2
        assert message in ended.json["error"]
        assert json.loads(path.read_text()) == changed
    path.write_text(json.dumps(stored))
    assert "other settings" in sortyard(*SMALL, "--heads", "1").json["error"]
    path.write_text("[]")
    assert "is no result" in sortyard(*SMALL).json["error"]


def test_sources_come_in_any_format_and_their_folders_stay_private(sortyard: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("one", "two"):
        documents = [" ".join(f"{name}{i}{j % 7}" for j in range(300)) for i in range(12)]
        (folder / f"{name}.txt").write_text("\n\n\n".join(documents))
        rows = [{"text": f"{document[:60]} {i}", "label": i % 3} for i, document in enumerate(documents * 3)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"--data={name}={folder / name}.txt" for name in ("one", "two")]
    words += [f"--labels={name}={folder / name}.jsonl" for name in ("one", "two")]
    ended = sortyard(*SMALL, "--steps", "0", "--seeds", "1", "--text-steps", "1", "--label-steps", "1", *words)
    assert ended.status == 0, ended.err
    assert list(ended.json["cells"]) == [
        f"{task}/1/{arm}/seed0" for task in ("mixed-text", "mixed-labels") for arm in ("context", "static")
    ]
    assert str(tmp_path) not in (tmp_path / "gates.json").read_text()
    assert "--data one=one.txt" in ended.json["command"]
    page = (tmp_path / "gates.html").read_text()
    for words_ in ("One classifier for several labelled sets", "Masked language modelling on passages"):
        assert words_ in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "contxt"], "--arms contxt: is none of context"),
        (["--arms", ","], "--arms ',': is empty"),
        (["--steps", "3x"], "--steps 3x: expected numbers of steps"),
        (["--steps", "0"], "--steps 0: leaves nothing to train"),
        (["--heads", "3"], "--heads 3: must divide the model's width 32; choose one of 1, 2, 4"),
        (["--lr", "0"], "--lr 0: expected a learning rate above 0"),
        (["--text-steps", "10"], "--text-steps 10: there is nothing to train on; give --data NAME=PATH"),
        (
            ["--steps", "0", "--text-steps", "0", "--data", "a=x.txt", "--data", "b=y.txt"],
            "--steps 0: leaves nothing to train",
        ),
        (["--data", "novels.txt"], "--data novels.txt: expected NAME=PATH"),
        (["--data", "a=x.txt"], "--data a=x.txt: one source is no mixture"),
        (["--labels", "a=x.tsv", "--labels", "a=y.tsv"], "--labels a=y.tsv: the name a is there twice"),
        (["--data", "a=x.txt", "--data", "b=y.txt"], "--data a=x.txt: x.txt: there is no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_named(words: list[str], message: str, sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard("study", "gates", *words, "--json")
    assert ended.status == 2
    assert message in ended.json["error"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["gates", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str], program: Callable) -> None:
    assert program("study", *words, code=HEAVY).out.splitlines()[-1] == "(0, [])"
