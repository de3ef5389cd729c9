"""`bench attention` and `bench dynamic-buckets`: small real runs through the command line."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from sortyard.studies.bench import attention as study
from sortyard.studies.bench import comparison, dynamic_buckets, peers
from sortyard.studies.bench.memory import Peak, peak_extra_memory
from sortyard.studies.bench.sides import find_sides
from tests.cli.test_start import HEAVY

SMALL = ("--lengths", "128,256", "--heads", "2", "--head-width", "16", "--repetitions", "2", "--threads", "1", "--json")
LIGHT = (*SMALL, "--memory", "none", "--dtypes", "fp32", "--directions", "forward")
TWO_SIDES = ("--sides", "tree-default-cpu")


def test_every_side_is_measured_in_both_directions(sortyard: Callable) -> None:
    ended = sortyard("bench", "attention", *SMALL, "--lengths", "256", "--memory", "none")
    assert ended.status == 0, ended.err
    found = ended.json
    assert found["complete"] is True
    assert len(found["cells"]) == 2 * 2
    for cell in found["cells"].values():
        assert list(cell["sides"]) == list(find_sides("cpu"))
        dense = cell["sides"]["dense"]["seconds"]
        for record in cell["sides"].values():
            assert record["skipped"] == ""
            assert record["median_seconds"] == statistics.median(record["seconds"])
            ratios = [base / own for base, own in zip(dense, record["seconds"], strict=True)]
            expected = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
            assert record["ratio_to_dense"] == pytest.approx(expected)
            assert record["keys_per_query"] > 0


def test_the_files_hold_what_was_printed(sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard("bench", "attention", *LIGHT, *TWO_SIDES, "--out", "there")
    stored = json.loads((tmp_path / "there" / "attention.json").read_text())
    assert stored == {key: value for key, value in ended.json.items() if key != "files"}
    assert stored["command"].startswith("sortyard bench attention --lengths 128,256 --dtypes fp32")
    assert "there" not in stored["command"]
    assert stored["versions"]["reformer-pytorch"]
    page = (tmp_path / "there" / "attention.html").read_text()
    for words in ("Times faster than dense", "tree-default-cpu", "fp32, forward"):
        assert words in page
    assert "src=" not in page.split("<script", 1)[0]


@pytest.mark.parametrize("words", [["--help"], ["attention", "--help"], ["dynamic-buckets", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str], program: Callable) -> None:
    ended = program("bench", *words, code=HEAVY)
    assert ended.out.splitlines()[-1] == "(0, [])"


def test_memory_at_the_longest_length_and_every_table(sortyard: Callable, tmp_path: Path) -> None:
    words = [word for word in (*LIGHT, *TWO_SIDES) if word != "--json"]
    words[words.index("--memory") + 1] = "longest"
    out = sortyard("bench", "attention", *words).out
    for title in ("time of a call", "times faster than dense", "peak extra memory in MB", "slope 128..256"):
        assert title in out
    assert out.splitlines()[-1] == "attention.html"
    found = json.loads((tmp_path / "attention.json").read_text())
    peaks = {key: cell["sides"]["dense"]["peak_extra_bytes"] for key, cell in found["cells"].items()}
    assert peaks["fp32/forward/128"] is None
    assert peaks["fp32/forward/256"] > 0


def test_more_lengths_sides_and_memory_are_added(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def peak(_: str, arguments: dict, **__: object) -> Peak:
        asked.append((arguments["side"], arguments["length"]))
        return Peak(1000, "made up")

    monkeypatch.setattr(comparison, "peak_extra_memory", peak)
    words = [word for word in LIGHT if word not in ("--memory", "none")]
    first = sortyard("bench", "attention", *words, "--lengths", "64", *TWO_SIDES).json
    sortyard("bench", "attention", *words, "--lengths", "64,128", "--sides", "rounds-cpu")
    assert asked == [("dense", 64), ("tree-default-cpu", 64), ("rounds-cpu", 64), ("dense", 128), ("rounds-cpu", 128)]
    ended = sortyard("bench", "attention", *words, "--lengths", "64,128", *TWO_SIDES)
    assert asked[5:] == [("tree-default-cpu", 128)]
    assert "1/2  fp32/forward/64: measured before" in ended.err
    for cell in ended.json["cells"].values():
        assert list(cell["sides"]) == ["dense", "tree-default-cpu", "rounds-cpu"]
        assert {record["peak_extra_bytes"] for record in cell["sides"].values()} == {1000}
    assert ended.json["earlier_commands"][0] == first["command"]
    assert len(ended.json["earlier_commands"]) == 2
    page = (tmp_path / "attention.html").read_text()
    assert all(command in page for command in [*ended.json["earlier_commands"], ended.json["command"]])


def test_what_there_is_no_time_for_is_left_to_the_same_command(sortyard: Callable) -> None:
    words = [word for word in (*LIGHT, *TWO_SIDES, "--minutes", "0", "--repetitions", "5") if word != "--json"]
    ended = sortyard("bench", "attention", *words)
    assert ended.status == 0
    assert "The time is over. Not measured: 1 of 2 cells" in ended.out
    found = sortyard("bench", "attention", *words, "--json").json
    assert found["complete"] is True
    for cell in found["cells"].values():
        assert [len(record["seconds"]) for record in cell["sides"].values()] == [1, 1]
    assert "--minutes 0" in found["command"]


def test_an_interrupted_run_goes_on_where_it_stopped(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    real = study.measure_cell

    def measure(case, *args, **kwargs):
        if measured == ["fp32/forward/128"]:
            measured.append("stop")
            raise KeyboardInterrupt
        measured.append(case.key)
        return real(case, *args, **kwargs)

    monkeypatch.setattr(study, "measure_cell", measure)
    assert sortyard("bench", "attention", *LIGHT, *TWO_SIDES).status == 130
    stored = json.loads((tmp_path / "attention.json").read_text())
    assert list(stored["cells"]) == ["fp32/forward/128"]
    assert stored["complete"] is False
    assert (tmp_path / "attention.html").exists()

    found = sortyard("bench", "attention", *LIGHT, *TWO_SIDES).json
    assert measured == ["fp32/forward/128", "stop", "fp32/forward/256"]
    assert found["complete"] is True
    assert found["cells"]["fp32/forward/128"] == stored["cells"]["fp32/forward/128"]

    sortyard("bench", "attention", *LIGHT, *TWO_SIDES, "--fresh")
    assert measured[3:] == ["fp32/forward/128", "fp32/forward/256"]


def test_other_settings_do_not_overwrite_a_result(sortyard: Callable, tmp_path: Path) -> None:
    sortyard("bench", "attention", *LIGHT, *TWO_SIDES)
    before = (tmp_path / "attention.json").read_bytes()
    ended = sortyard("bench", "attention", *LIGHT, *TWO_SIDES, "--heads", "1")
    assert ended.status == 2
    assert "other settings; --fresh replaces it" in ended.json["error"]
    assert (tmp_path / "attention.json").read_bytes() == before


def test_a_missing_peer_is_named_and_no_error(sortyard: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda module: None if module == "reformer_pytorch" else module)
    words = ("--lengths", "128", "--sides", "reformer-pytorch-1r,transformers-1r")
    ended = sortyard("bench", "attention", *LIGHT, *words)
    sides = ended.json["cells"]["fp32/forward/128"]["sides"]
    assert (sides["reformer-pytorch-1r"]["skipped"], sides["reformer-pytorch-1r"]["seconds"]) == ("not installed", [])
    assert sides["transformers-1r"]["skipped"] == ""
    assert "reformer-pytorch-1r skipped: not installed" in ended.err


def test_a_length_that_a_peer_cannot_take_is_skipped(sortyard: Callable) -> None:
    words = ("--lengths", "100", "--sides", "transformers-1r")
    sides = sortyard("bench", "attention", *LIGHT, *words).json["cells"]["fp32/forward/100"]["sides"]
    assert sides["transformers-1r"]["skipped"] == "needs a length that is a multiple of 64"
    assert sides["dense"]["seconds"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lengths", "12x"], "--lengths 12x: expected tokens from 1 to"),
        (["--lengths", "0"], "--lengths 0"),
        (["--lengths", ","], "--lengths ',': is empty"),
        (["--dtypes", "fp23"], "--dtypes fp23: is none of fp32, bf16; did you mean fp32?"),
        (["--directions", "backward"], "--directions backward: is none of"),
        (["--memory", "all,none"], "--memory all: expected tokens from 1 to"),
        (["--sides", "tree"], "--sides tree: is none of"),
        (["--device", "tpu"], "--device tpu: expected cpu, cuda"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_named(words: list[str], message: str, sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard("bench", "attention", *words, "--json")
    assert ended.status == 2
    assert message in ended.json["error"]
    assert list(tmp_path.iterdir()) == []


def test_dynamic_buckets_puts_the_claim_beside_the_measurement(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(target: str, arguments: dict, **options: object) -> Peak:
        if (arguments["selection"], len(arguments["lengths"])) == ("tree", 3):
            return peak_extra_memory(target, arguments, **options)
        return Peak(1000 if arguments["side"] == "following" else 2000, "made up")

    monkeypatch.setattr(dynamic_buckets, "peak_extra_memory", peak)
    words = ("--shortest", "64", "--longest", "256", "--sequences", "3", "--lengths", "256", "--heads", "2")
    words = (*words, "--head-width", "16", "--repetitions", "1", "--directions", "forward")
    ended = sortyard("bench", "dynamic-buckets", *words, "--json")
    assert ended.status == 0, ended.err
    found = ended.json
    assert len(found["cells"]) == 2 * 2
    assert sum(found["settings"]["mix"]) == found["cells"]["forward/tree/mix"]["tokens"]
    for claim in found["summary"]["on_the_mix"]:
        cell = found["cells"][f"{claim['direction']}/{claim['selection']}/mix"]
        following, fixed = (cell["sides"][side] for side in ("following", "fixed"))
        saved = 1 - following["peak_extra_bytes"] / fixed["peak_extra_bytes"]
        assert claim["measured_saving"] == pytest.approx(saved)
        assert claim["holds"] is (saved >= 0.42)
        assert claim["times_faster"] == pytest.approx(fixed["seconds"][0] / following["seconds"][0])
    assert (tmp_path / "dynamic_buckets.html").exists()
    again = sortyard("bench", "dynamic-buckets", *words)
    assert "measured before" in again.err
    assert "hold" in again.out


def test_dynamic_buckets_names_bad_options(sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard("bench", "dynamic-buckets", "--shortest", "512", "--longest", "256", "--json")
    assert (ended.status, ended.json["error"]) == (2, "--shortest 512: must not exceed --longest, which is 256")
    assert list(tmp_path.iterdir()) == []
