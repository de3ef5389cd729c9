"""`bench experts`: small real runs through the command line."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sortyard.ops.grouped_mlp import BACKENDS
from sortyard.studies.bench import budgets, experts_peers, experts_sides
from sortyard.studies.bench import experts as study
from sortyard.studies.bench.experts_check import TOLERANCES, deviation
from sortyard.studies.bench.experts_sides import find_sides
from tests.cli.test_start import HEAVY

SIZES = ("--experts", "4x2", "--hidden-size", "32", "--intermediate-size", "64", "--repetitions", "2", "--threads", "1")
SMALL = (*SIZES, "--tokens", "48,96", "--json")
LIGHT = (*SMALL, "--memory", "none", "--dtypes", "fp32", "--directions", "forward")
FEW = ("--sides", "sortyard,transformers-grouped")
# torch's compiler imports what torch itself warns of as deprecated.
WITHOUT_ERRORS_OF_WARNINGS = """
import sys, warnings
from sortyard.cli.main import main
warnings.simplefilter("default")
sys.exit(main(sys.argv[1:]))
"""
# The tests' checks of shapes keep torch.compile from seeing one graph: compiled sides run in a process of their own.
EAGER = [name for name, side in find_sides("cpu").items() if not side.is_compiled]


@pytest.fixture(autouse=True)
def unchecked() -> None:
    """Every test checks its sides anew, as some make them wrong."""
    deviation.cache_clear()


def test_every_side_is_right_and_measured_in_both_directions(sortyard: Callable) -> None:
    words = (*SMALL, "--tokens", "96", "--experts", "4x2,8x4", "--memory", "none", "--sides", ",".join(EAGER))
    ended = sortyard("bench", "experts", *words)
    assert ended.status == 0, ended.err
    found = ended.json
    assert found["complete"] is True
    assert set(found["cells"]) == {
        f"{experts}/{dtype}/{direction}/96"
        for experts in ("4x2", "8x4")
        for dtype in ("fp32", "bf16")
        for direction in ("forward", "forward+backward")
    }
    for cell in found["cells"].values():
        assert list(cell["sides"]) == EAGER
        assert 1 <= cell["max_over_fair_load"] < 4
        dense = cell["sides"]["dense"]["seconds"]
        for record in cell["sides"].values():
            assert record["skipped"] == ""
            assert 0 <= record["deviation"] <= TOLERANCES[cell["dtype"]]
            assert record["median_seconds"] == statistics.median(record["seconds"])
            ratios = [own / base for base, own in zip(dense, record["seconds"], strict=True)]
            expected = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
            assert record["times_dense"] == pytest.approx(expected)


def test_the_sides_are_those_that_run_here() -> None:
    backends = {f"sortyard-{name}" for name in BACKENDS}
    here, on_cuda = set(find_sides("cpu")), set(find_sides("cuda"))
    assert backends - here == {"sortyard-triton"}
    assert backends <= on_cuda
    for name in ("dense-compiled", "sortyard-compiled", "naive", "transformers-eager", "transformers-batched"):
        assert name in here


def test_ours_stands_beside_the_fastest_of_transformers(sortyard: Callable) -> None:
    words = (*LIGHT, "--sides", "sortyard,transformers-eager,transformers-grouped")
    found = sortyard("bench", "experts", *words).json
    for key, cell in found["cells"].items():
        summary, sides = found["summary"]["cells"][key], cell["sides"]
        peers = {name: record for name, record in sides.items() if name.startswith("transformers")}
        assert summary["best_peer"] == min(peers, key=lambda name: peers[name]["median_seconds"])
        best = peers[summary["best_peer"]]
        assert summary["peer"] == best["times_dense"]
        assert summary["ours"] == sides["sortyard"]["times_dense"]
        ratios = [theirs / own for theirs, own in zip(best["seconds"], sides["sortyard"]["seconds"], strict=True)]
        assert summary["faster_than_peer"]["median"] == pytest.approx(statistics.median(ratios))


def test_the_text_ends_with_ours_beside_dense_and_transformers(sortyard: Callable) -> None:
    words = [word for word in (*LIGHT, *FEW) if word != "--json"]
    lines = sortyard("bench", "experts", *words).out.splitlines()
    for title in ("time of a call", "times as long as dense"):
        assert any(title in line for line in lines)
    head = lines.index("Time over that of the dense layer (medians)")
    assert lines[head + 1].split() == ["48", "96"]
    for line, name in zip(lines[head + 2 : head + 5], ("sortyard / dense", "best / dense", "/ sortyard"), strict=True):
        assert line.startswith("4x2, fp32, forward: ")
        assert name in line
    assert "grouped" in lines[head + 3]
    assert lines[-2:] == ["experts.json", "experts.html"]


def test_the_files_hold_what_was_printed(sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard("bench", "experts", *LIGHT, *FEW, "--out", "there")
    stored = json.loads((tmp_path / "there" / "experts.json").read_text())
    assert stored == {key: value for key, value in ended.json.items() if key != "files"}
    assert stored["command"].startswith("sortyard bench experts --tokens 48,96 --experts 4x2 --dtypes fp32")
    assert "there" not in stored["command"]
    page = (tmp_path / "there" / "experts.html").read_text()
    for words in ("Times as long as dense", "transformers-grouped", "4x2, fp32, forward", "its fair share"):
        assert words in page
    assert "src=" not in page.split("<script", 1)[0]


def test_help_loads_nothing_heavy(program: Callable) -> None:
    ended = program("bench", "experts", "--help", code=HEAVY)
    assert ended.out.splitlines()[-1] == "(0, [])"


def test_memory_is_measured_at_the_most_tokens(sortyard: Callable, tmp_path: Path) -> None:
    words = [word for word in LIGHT if word != "--json"]
    words += ["--sides", "sortyard", "--memory", "longest", "--tokens", "64,2k", "--hidden-size", "128"]
    assert "peak extra memory in MB" in sortyard("bench", "experts", *words, "--intermediate-size", "512").out
    found = json.loads((tmp_path / "experts.json").read_text())
    for name in ("dense", "sortyard"):
        assert found["cells"]["4x2/fp32/forward/64"]["sides"][name]["peak_extra_bytes"] is None
        # at least the output and the inner values
        assert found["cells"]["4x2/fp32/forward/2048"]["sides"][name]["peak_extra_bytes"] >= 2048 * 128 * 4


def test_a_wrong_side_is_an_error_and_no_figure(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = experts_sides.naive_experts

    def wrong(inputs, case):
        experts = right(inputs, case)
        return lambda tokens, chosen, weights: experts(tokens, chosen, weights * 1.001)

    monkeypatch.setattr(experts_sides, "naive_experts", wrong)
    ended = sortyard("bench", "experts", *LIGHT, "--tokens", "48", "--sides", "sortyard,naive")
    assert (ended.status, ended.json["exit_status"]) == (1, 1)
    found = json.loads((tmp_path / "experts.json").read_text())
    record = found["cells"]["4x2/fp32/forward/48"]["sides"]["naive"]
    assert record["skipped"] == "wrong result: off by 0.001, more than 2e-05"
    assert (record["seconds"], record["times_dense"]) == ([], None)
    assert found["cells"]["4x2/fp32/forward/48"]["sides"]["sortyard"]["seconds"]
    assert "error: wrong results, not timed: naive (4x2/fp32/forward/48)" in ended.err


def test_a_failing_side_says_so_and_the_others_go_on(sortyard: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(experts_sides, "naive_experts", fail)
    ended = sortyard("bench", "experts", *LIGHT, "--tokens", "48", "--sides", "sortyard,naive")
    assert ended.status == 0
    sides = ended.json["cells"]["4x2/fp32/forward/48"]["sides"]
    assert sides["naive"]["skipped"] == "RuntimeError: no kernel"
    assert sides["sortyard"]["seconds"]


def test_what_would_not_fit_is_not_tried(sortyard: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "free_bytes", lambda device: 10**6)
    ended = sortyard("bench", "experts", *LIGHT, "--tokens", "96", "--sides", "transformers-batched")
    # two gathered matrices of 32 x 32 values for each of 96 tokens' 2 experts
    sides = ended.json["cells"]["4x2/fp32/forward/96"]["sides"]
    assert sides["transformers-batched"]["skipped"].startswith("predicted to need 0.0 GB, more than 60%")
    assert sides["dense"]["seconds"]


def test_an_older_transformers_is_named_and_no_error(sortyard: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_peers, "_CLASS", "NoSuchExperts")
    ended = sortyard("bench", "experts", *LIGHT, "--tokens", "48", *FEW)
    assert ended.status == 0
    sides = ended.json["cells"]["4x2/fp32/forward/48"]["sides"]
    assert sides["transformers-grouped"]["skipped"].startswith("not in the installed transformers")
    assert "transformers-grouped skipped: not in the installed transformers" in ended.err


def test_an_interrupted_run_goes_on_where_it_stopped(
    sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    real = study.measure_cell

    def measure(case, *args, **kwargs):
        if measured == ["4x2/fp32/forward/48"]:
            measured.append("stop")
            raise KeyboardInterrupt
        measured.append(case.key)
        return real(case, *args, **kwargs)

    monkeypatch.setattr(study, "measure_cell", measure)
    assert sortyard("bench", "experts", *LIGHT, *FEW).status == 130
    stored = json.loads((tmp_path / "experts.json").read_text())
    assert (list(stored["cells"]), stored["complete"]) == (["4x2/fp32/forward/48"], False)
    assert (tmp_path / "experts.html").exists()
    found = sortyard("bench", "experts", *LIGHT, *FEW).json
    assert measured == ["4x2/fp32/forward/48", "stop", "4x2/fp32/forward/96"]
    assert found["complete"] is True
    assert found["cells"]["4x2/fp32/forward/48"] == stored["cells"]["4x2/fp32/forward/48"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "12x"], "--tokens 12x: expected tokens from 1 to"),
        (["--experts", "8"], "--experts 8: expected experts x experts of a token"),
        (["--experts", "1x1"], "--experts 1x1: expected experts x experts of a token"),
        (["--experts", "8x9"], "--experts 8x9: expected experts x experts of a token"),
        (["--experts", "8x5"], "--experts 8x5: 5 experts of a token cannot share --intermediate-size 3072"),
        (["--experts", ","], "--experts ',': is empty"),
        (["--dtypes", "fp23"], "--dtypes fp23: is none of fp32, bf16; did you mean fp32?"),
        (["--sides", "sortyrad"], "--sides sortyrad: is none of"),
        (["--device", "tpu"], "--device tpu: expected cpu, cuda"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_named(words: list[str], message: str, sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard("bench", "experts", *words, "--json")
    assert ended.status == 2
    assert message in ended.json["error"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch, "compile"), reason="this torch does not compile")
def test_compiled_sides_run_in_one_graph(program: Callable) -> None:
    words = (*SMALL, "--tokens", "96", "--memory", "none", "--directions", "forward+backward")
    sides = ("--sides", "dense-compiled,sortyard,sortyard-compiled")
    ended = program("bench", "experts", *words, *sides, code=WITHOUT_ERRORS_OF_WARNINGS)
    assert ended.status == 0, ended.err
    for cell in ended.json["cells"].values():
        for name, record in cell["sides"].items():
            assert (name, record["skipped"]) == (name, "")
            assert record["deviation"] <= TOLERANCES[cell["dtype"]]
