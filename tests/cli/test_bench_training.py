"""`bench training`: a small real run through the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sortyard.cli.bench_training import TOPICS as WORDS
from sortyard.studies.bench.training_sides import TOPICS, load_trained
from tests.cli.test_start import HEAVY

SMALL = (
    *("--lengths", "64", "--tokens", "256", "--hidden-size", "192", "--layers", "2", "--vocabulary", "97"),
    *("--repetitions", "2", "--json"),
)


@pytest.fixture(autouse=True)
def forget() -> None:
    load_trained.cache_clear()


def test_every_topic_is_measured_and_set_beside_the_claims(sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard("bench", "training", *SMALL, "--out", "there")
    assert ended.status == 0, ended.err
    found = ended.json
    assert found["complete"] is True
    assert {cell["topic"]: list(cell["sides"]) for cell in found["cells"].values()} == {
        topic: [side.name for side in sides] for topic, sides in TOPICS.items()
    }
    for cell in found["cells"].values():
        for name, record in cell["sides"].items():
            if name == "fp16" and record["skipped"]:
                continue
            assert record["peak_extra_bytes"] > 4 * record["active_parameters"]
            assert record["times_as_long"]["low"] <= record["times_as_long"]["median"]
            assert len(record["seconds"]) == 2
    assert found["settings"]["seconds_are"].startswith("of the processor")
    assert {claim["claim"] for claim in found["summary"]["claims"]} == {"C8", "C9", "C10", "C11"}
    (cell,) = (cell for cell in found["cells"].values() if cell["topic"] == "accumulation")
    assert cell["gradients"]["relative_error"] < 1e-14
    assert len(set(cell["gradients"]["targets"])) > 1
    stored = (tmp_path / "there" / "training.json").read_text()
    assert json.loads(stored) == {key: value for key, value in found.items() if key != "files"}
    assert str(tmp_path) not in stored
    page = (tmp_path / "there" / "training.html").read_text()
    for words in ("Activation checkpointing", "Padded and packed rows", "Claimed and measured"):
        assert words in page


def test_words_and_topics_agree() -> None:
    assert tuple(TOPICS) == WORDS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--topics", "precison"), "did you mean precision"),
        (("--lengths", "2k", "--tokens", "1024"), "--lengths 2048: must not exceed --tokens"),
        (("--hidden-size", "200"), "--hidden-size 200: must be a multiple of 192"),
        (("--device", "tpu"), "--device tpu"),
    ],
)
def test_what_cannot_be_is_refused_before_work(words: tuple[str, ...], message: str, sortyard: Callable) -> None:
    ended = sortyard("bench", "training", *words)
    assert ended.status == 2
    assert message in ended.err


def test_help_loads_nothing_heavy(program: Callable) -> None:
    assert program("bench", "training", "--help", code=HEAVY).out.splitlines()[-1] == "(0, [])"
