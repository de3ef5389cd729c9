"""`study claims`: what is run for a claim, in which order, and how measurements are read."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from sortyard.cli.main import app
from sortyard.errors import InputError
from sortyard.studies.bench import sides
from sortyard.studies.claims.claim_list import CLAIMS
from sortyard.studies.claims.claims_page import markdown
from sortyard.studies.claims.cpu_steps import Asked, ledger_steps
from sortyard.studies.claims.findings import FAILS, HOLDS, IN_PART, MISSING, Finding
from sortyard.studies.claims.ledger import READERS, SHARED, ClaimsPlan, run_claims
from sortyard.studies.claims.running import StepLog, run_steps
from sortyard.studies.claims.steps import Step, wanted
from sortyard.studies.claims.texts import write_texts
from sortyard.studies.crew import Ended

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
ASKED = Asked(domains=("a", "b"), has_encoder=True, has_novels=True, compiled=True)
HERE = {"machine": {"cpu": "Here", "cores": 2, "device": "cpu"}, "code": "aaaa", "commit": None}
PLAN = ClaimsPlan(texts={}, encoder=None, glue=None, novels=None, claims=("C3",), gpu=False, jobs=2, compiled=True)


def _nothing(*_: object) -> None:
    return None


def _run(
    steps: Sequence[Step],
    work: Path,
    *,
    minutes: float = 9.0,
    say: Callable[[str], None] = _nothing,
    origin: dict[str, Any] | None = None,
) -> StepLog:
    return run_steps(
        steps, places={"work": work}, origin=origin or HERE, jobs=2, minutes=minutes, say=say, after=_nothing
    )


def _parsed(words: Sequence[str]) -> dict[str, Any]:
    """What a verb is given; raises where the command line does not take the words."""
    command, left = get_command(app), list(words)
    while commands := getattr(command, "commands", None):
        command = commands[left.pop(0)]
    return command.make_context("sortyard", left).params


class TestSteps:
    def test_every_claim_has_a_measurement_and_a_reader(self) -> None:
        ids = {claim.id for claim in CLAIMS}
        assert ids == {f"C{number}" for number in range(1, 13)}
        assert set(READERS) == ids
        assert {step.claim for step in ledger_steps(ASKED) if step.claim} == ids - set(SHARED)

    def test_names_are_unique_and_needs_exist(self) -> None:
        names = [step.name for step in ledger_steps(ASKED)]
        assert len(set(names)) == len(names)
        assert {need for step in ledger_steps(ASKED) for need in step.needs} <= set(names)

    def test_what_is_needed_comes_first_and_what_runs_alone_before_the_rest(self) -> None:
        steps = wanted(ledger_steps(ASKED), [claim.id for claim in CLAIMS])
        places = {step.name: place for place, step in enumerate(steps)}
        assert len(steps) == len(ledger_steps(ASKED))
        assert all(places[need] < places[step.name] for step in steps for need in step.needs)
        last_alone = max(places[step.name] for step in steps if step.alone)
        beside = [step for step in steps[:last_alone] if not step.alone]
        assert all(any(step.name in other.needs for other in steps if other.alone) for step in beside)

    def test_only_what_a_claim_needs_is_run(self) -> None:
        names = [step.name for step in wanted(ledger_steps(ASKED), ["C12"])]
        assert names == ["prepared", "C12/many", "C12/one"]

    @pytest.mark.parametrize("gpu", [False, True])
    def test_the_command_line_takes_every_command(
        self, gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sides, "available_backends", lambda _: ("triton", "cpu") if gpu else ("compiled", "cpu"))
        places = {name: tmp_path / name for name in ("work", "encoder", "glue", "novels")}
        for step in ledger_steps(replace(ASKED, gpu=gpu)):
            given = _parsed(step.command(places))
            if step.name == "C1/attention":
                assert set(given["sides"].split(",")) <= set(sides.find_sides("cuda" if gpu else "cpu"))
            if gpu and "device" in given:
                assert given["device"] == "cuda", step.name

    def test_32_processes_do_not_ask_for_32_gpus(self) -> None:
        layouts = [step for step in ledger_steps(replace(ASKED, gpu=True)) if step.claim == "C12"]
        assert all("pretrain.loop.device=cpu" in step.words for step in layouts)

    def test_without_an_encoder_its_claim_has_no_commands(self) -> None:
        steps = ledger_steps(replace(ASKED, has_encoder=False))
        assert not [step for step in steps if step.claim == "C4"]

    def test_a_run_that_was_begun_is_resumed_and_no_place_is_kept(self, tmp_path: Path) -> None:
        step = next(step for step in ledger_steps(ASKED) if step.name == "C4/dense-seed0")
        places = {"work": tmp_path / "w", "glue": tmp_path / "g", "encoder": tmp_path / "e"}
        command = step.command(places)
        assert command[0] == "finetune"
        assert str(tmp_path / "g") in command
        (places["work"] / step.name).mkdir(parents=True)
        (places["work"] / step.name / "resolved.yaml").touch()
        assert step.command(places) == ["resume", str(places["work"] / step.name), "-q"]
        assert str(tmp_path) not in step.shown()
        assert "--data GLUE" in step.shown()


class TestRunning:
    def test_a_failure_is_told_and_only_what_needs_it_is_left_out(self, tmp_path: Path) -> None:
        told: list[str] = []
        steps = [
            Step("bad", ("data", "peek", "no-such-file"), 1, makes_folder=False),
            Step("after-bad", ("recipes",), 1, makes_folder=False, needs=("bad",)),
            Step("good", ("recipes",), 1, makes_folder=False),
        ]
        log = _run(steps, tmp_path, say=told.append)
        assert log.is_done(steps[2])
        assert "no-such-file" in log.problem("bad")
        assert log.problem("after-bad") == "bad failed"
        assert log.entries["after-bad"]["origins"] == []  # it was not made anywhere
        assert log.entries["good"]["origins"] == [HERE]
        assert any("left out, bad failed" in line for line in told)

    def test_what_is_done_is_not_run_again_until_its_words_change(self, tmp_path: Path) -> None:
        step = Step("one", ("recipes",), 1, makes_folder=False)
        _run([step], tmp_path)
        told: list[str] = []
        _run([step], tmp_path, say=told.append)
        assert told == []
        _run([replace(step, words=("recipes", "--json"))], tmp_path, say=told.append)
        assert any("done" in line for line in told)

    def test_what_reads_a_step_that_is_done_anew_is_done_anew(self, tmp_path: Path) -> None:
        need, reader = (Step(name, ("recipes",), 1, makes_folder=False) for name in ("need", "reader"))
        reader = replace(reader, needs=("need",))
        _run([need, reader], tmp_path)
        changed = replace(need, words=("recipes", "--json"))
        assert _run([changed], tmp_path).left([changed, reader]) == [reader]  # though it was not asked for meanwhile
        told: list[str] = []
        _run([changed, reader], tmp_path, say=told.append)
        assert [line.split(":")[0] for line in told] == ["1/1  reader", "reader"]
        assert _run([changed, reader], tmp_path).left([changed, reader]) == []

    def test_a_run_that_other_words_began_is_not_gone_on_with(self, tmp_path: Path) -> None:
        run = Step("C3/one", ("pretrain", "no-such-recipe"), 1, resumes=True)
        _run([run], tmp_path)  # ends badly; its words are kept all the same
        _begin(tmp_path / run.name)
        other = replace(run, words=("pretrain", "another"))
        told: list[str] = []
        with pytest.raises(InputError, match=r"C3/one: begun by another command.*remove it, or give another --out"):
            _run([Step("free", ("recipes",), 1, makes_folder=False), other], tmp_path, say=told.append)
        assert told == []
        assert not StepLog.read(tmp_path).is_done(other)
        shutil.rmtree(tmp_path / run.name)
        _run([other], tmp_path, say=told.append)
        assert told

    def test_the_words_of_a_run_are_kept_before_it_begins(self, tmp_path: Path) -> None:
        run = Step("C3/one", ("pretrain", "small"), 1, resumes=True)
        StepLog.read(tmp_path).note_begin(run, origin=HERE)  # and then the machine stops
        _begin(tmp_path / run.name)
        log = StepLog.read(tmp_path)
        log.check_resumable([run])
        with pytest.raises(InputError, match="C3/one"):
            log.check_resumable([replace(run, words=("pretrain", "another"))])

    def test_a_finished_run_is_not_kept_when_what_it_read_is_made_anew(self, tmp_path: Path) -> None:
        need = Step("prepared", ("data", "prep", "x"), 1)
        run = Step("C3/one", ("pretrain", "small"), 1, resumes=True, needs=("prepared",))
        log = StepLog.read(tmp_path)
        for step in (need, run):
            log.note_begin(step, origin=HERE)
            log.note(step, problem="", ended=None)
        _begin(tmp_path / run.name)
        log.check_resumable([need, run])
        with pytest.raises(InputError, match="C3/one"):
            log.check_resumable([replace(need, words=("data", "prep", "y")), run])

    def test_where_a_step_was_made_is_kept_once_and_what_begins_anew_costs_anew(self, tmp_path: Path) -> None:
        step = Step("one", ("recipes",), 1, makes_folder=False)
        log, there = StepLog.read(tmp_path), HERE | {"machine": HERE["machine"] | {"cpu": "There"}}
        for origin in (HERE, HERE, there):
            log.note_begin(step, origin=origin)
            log.note(step, problem=None, ended=Ended(130, 2.0, 1.5, was_stopped=True))
        entry = StepLog.read(tmp_path).entries["one"]
        assert entry["origins"] == [HERE, there]
        assert entry["processor_seconds"] == 4.5
        log.note_begin(replace(step, words=("recipes", "--json")), origin=there)
        assert log.entries["one"]["origins"] == [there]
        assert log.entries["one"]["processor_seconds"] == 0

    def test_nothing_begins_when_the_time_is_over(self, tmp_path: Path) -> None:
        step = Step("one", ("recipes",), 1, makes_folder=False)
        told: list[str] = []
        assert not _run([step], tmp_path, minutes=0.0, say=told.append).is_done(step)
        assert told == []

    def test_a_failed_step_is_tried_again(self, tmp_path: Path) -> None:
        step = Step("one", ("data", "peek", "{work}/mine.jsonl"), 1, makes_folder=False)
        log = _run([step], tmp_path)
        assert "WORK/mine.jsonl" in log.problem("one")
        assert str(tmp_path) not in (tmp_path / "steps.json").read_text()
        (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "a document"}))
        assert _run([step], tmp_path).is_done(step)


def _begin(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resolved.yaml").touch()


class TestGiven:
    @pytest.fixture
    def plan(self, tmp_path: Path) -> ClaimsPlan:
        for folder in ("encoder", "glue"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "content").write_text("mine")
        (tmp_path / "novels.jsonl").write_text("{}")
        lines = (json.dumps({"text": f"document {number} " + "word " * 2000}) for number in range(120))
        (tmp_path / "mine.jsonl").write_text("\n".join(lines))
        return replace(PLAN, texts={"mine": str(tmp_path / "mine.jsonl")}, minutes=0.0)

    @pytest.mark.parametrize("name", ["encoder", "glue", "novels", "data mine"])
    def test_another_content_under_a_name_that_was_given_is_refused(
        self, plan: ClaimsPlan, name: str, tmp_path: Path
    ) -> None:
        files = {
            "encoder": tmp_path / "encoder" / "content", "glue": tmp_path / "glue" / "content",
            "novels": tmp_path / "novels.jsonl", "data mine": tmp_path / "mine.jsonl",
        }  # fmt: skip
        out = tmp_path / "out"
        out.mkdir()

        def read(plan: ClaimsPlan) -> None:
            run_claims(plan, folder=out, dry_run=False, say=_nothing)

        read(plan)
        places = {"encoder": files["encoder"].parent, "glue": files["glue"].parent, "novels": files["novels"]}
        plan = replace(plan, **places)
        read(plan)  # what comes for the first time is added
        read(plan)
        changed = files[name].read_text().replace("mine", "ours").replace("word", "wort").replace("{}", "[]")
        files[name].write_text(changed)
        with pytest.raises(InputError, match=f"another --{name}; give the same as before, or another --out"):
            read(plan)

    def test_cells_of_another_machine_say_so(self, plan: ClaimsPlan, tmp_path: Path) -> None:
        work = tmp_path / "work"
        work.mkdir()
        log, step = StepLog.read(work), Step("C1/attention", ("bench", "attention"), 1, alone=True)
        log.note_begin(step, origin=HERE)
        log.note(step, problem="", ended=None)
        log.entries["C2/dynamic-buckets"] = {name: log.entries[step.name][name] for name in OLD_ENTRY}
        (work / "steps.json").write_text(json.dumps(log.entries))
        result, text = run_claims(plan, folder=tmp_path, dry_run=False, say=_nothing)
        assert result.cells["C1"]["origins"] == [HERE]
        assert "made with: 2 cores of Here, cpu, code aaaa" in text
        table = (tmp_path / "claims.md").read_text()
        assert "C1: made with 2 cores of Here, cpu, code aaaa." in table
        assert "C2: made with a machine and code that were not kept." in table
        assert "C3: made with" not in table
        own = {"machine": result.machine, "code": result.code, "commit": "b" * 40}
        result.cells["C1"]["origins"] = [own]
        assert "C1: made with" not in markdown(result)
        result.cells["C1"]["origins"] = [own, HERE]
        assert "commit bbbbbbbbbbbb; 2 cores of Here" in markdown(result)


OLD_ENTRY = ("command", "problem", "seconds", "processor_seconds", "date", "machine_load")


class TestTexts:
    def test_a_long_document_is_not_cut_in_two_of_which_one_is_held_out(self, tmp_path: Path) -> None:
        source = tmp_path / "mine.jsonl"
        texts = ("one " * 700_000, *(f"short {number} " + "word " * 9000 for number in range(30)))
        source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
        write_texts({"mine": str(source)}, folder=tmp_path / "texts")
        trained, held_out = ((tmp_path / "texts" / part / "mine.jsonl").read_text() for part in ("corpus", "held-out"))
        assert "one one" in held_out
        assert "one one" not in trained

    def test_what_is_held_out_is_not_trained_on(self, tmp_path: Path) -> None:
        source = tmp_path / "mine.jsonl"
        lines = (json.dumps({"text": f"document {number} " + "word " * 2000}) for number in range(120))
        source.write_text("\n".join(lines))
        assert write_texts({"mine": str(source)}, folder=tmp_path / "texts") == ("mine",)
        trained, held_out = (
            (tmp_path / "texts" / part / "mine.jsonl").read_text().splitlines() for part in ("corpus", "held-out")
        )
        assert trained
        assert held_out
        assert not set(trained) & set(held_out)
        with pytest.raises(InputError, match="other texts"):
            write_texts({"other": str(source)}, folder=tmp_path / "texts")

    def test_too_little_text_is_told(self, tmp_path: Path) -> None:
        source = tmp_path / "mine.jsonl"
        source.write_text(json.dumps({"text": "one sentence"}))
        with pytest.raises(InputError, match="too little text"):
            write_texts({"mine": str(source)}, folder=tmp_path / "texts")


def _read(claim: str, work: Path, *files: tuple[str, str]) -> Finding:
    for name, place in files:
        (work / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(RESULTS / name, work / place)
    return READERS[claim](work)


class TestReading:
    @pytest.mark.parametrize("claim", list(READERS))
    def test_nothing_there_is_not_measured(self, claim: str, tmp_path: Path) -> None:
        finding = READERS[claim](tmp_path)
        assert finding.verdict == MISSING
        assert finding.note

    def test_attention_beside_dense(self, tmp_path: Path) -> None:
        finding = _read("C1", tmp_path, ("attention.json", "C1/attention/attention.json"))
        assert finding.verdict == HOLDS
        assert any("dense" in control and "time forward n^2.0" in control for control in finding.controls)

    def test_memory_of_buckets(self, tmp_path: Path) -> None:
        finding = _read("C2", tmp_path, ("dynamic_buckets.json", "C2/dynamic-buckets/dynamic_buckets.json"))
        assert finding.verdict == FAILS
        assert finding.share == pytest.approx(0.0003289 / 0.42, rel=1e-3)

    def test_inference_by_kind_of_batch(self, tmp_path: Path) -> None:
        finding = _read("C5", tmp_path, ("encoder.json", "C5/encoder/encoder.json"))
        assert finding.verdict == IN_PART
        assert finding.values["bf16 batches as they come"] == pytest.approx(3.196, abs=0.001)
        assert finding.values["bf16 512 tokens"] == pytest.approx(1.7226, abs=0.001)

    def test_a_training_step_serves_three_claims(self, tmp_path: Path) -> None:
        place = ("training.json", "C8/training/training.json")
        faster = _read("C8", tmp_path, place)
        assert faster.verdict == HOLDS
        assert "bf16, 512 tokens 2.79x" in faster.measured
        saved = _read("C9", tmp_path, place)
        assert saved.verdict == HOLDS
        assert "-36 % memory, +29 % time" in saved.measured
        assert _read("C10", tmp_path, place).verdict == HOLDS

    def test_gates_at_two_budgets(self, tmp_path: Path) -> None:
        finding = _read("C6", tmp_path, ("gates.json", "C6/gates/gates.json"))
        assert finding.verdict == IN_PART
        assert "+3.19 points at 350 steps" in finding.measured

    def test_knees_of_every_selection_as_it_is_and_trained(self, tmp_path: Path) -> None:
        finding = _read("C7", tmp_path, ("sparsity.json", "C7/sparsity/sparsity.json"))
        assert "loss after training with it, 2,048 tokens 96.3 %" in finding.measured
        by_name = dict(control.split(": ", 1) for control in finding.controls)
        assert set(by_name) == {"rounds", "random", "local"}
        assert "loss as it is, 2,048 tokens before 70.0 %" in by_name["random"]
        assert "passages of the corpus that C7/short and C7/base were trained on, not of unseen text" in finding.note
        assert "loss after training with it, 512 tokens 82.7 %" in by_name["local"]

    def test_twins_are_paired_over_seeds(self, tmp_path: Path) -> None:
        scores = {"dense": (0.80, 0.82, 0.81), "sparse": (0.81, 0.83, 0.822)}
        for name, values in scores.items():
            for seed, value in enumerate(values):
                _write(tmp_path / "C4" / f"{name}-seed{seed}" / "eval" / "sst2.json", {"metrics": {"accuracy": value}})
                _write(tmp_path / "C4" / f"{name}-seed{seed}" / "metrics.jsonl", {"kind": "train", "step": 7})
        finding = READERS["C4"](tmp_path)
        assert finding.verdict == HOLDS
        assert "+1.07 points" in finding.measured
        assert "after 7 steps" in finding.note

    def test_losses_of_many_processes(self, tmp_path: Path) -> None:
        for name, loss in (("one", 2.0), ("many", 2.0001)):
            _write(tmp_path / "C12" / name / "metrics.jsonl", {"kind": "train", "step": 1, "task_loss": loss})
        assert READERS["C12"](tmp_path).verdict == HOLDS
        _write(tmp_path / "C12" / "many" / "metrics.jsonl", {"kind": "train", "step": 1, "task_loss": 2.1})
        assert READERS["C12"](tmp_path).verdict == FAILS


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n")


@pytest.mark.slow
def test_a_claim_is_measured_end_to_end(tmp_path: Path) -> None:
    result, text = run_claims(replace(PLAN, factor=0.01), folder=tmp_path, dry_run=False, say=_nothing)
    assert result.cells["C3"]["verdict"] in (HOLDS, FAILS)
    assert result.cells["C3"]["problems"] == []
    assert len(result.cells["C3"]["controls"]) == 3
    assert "utilisation of the experts" in text
    assert "**not measured here**" in (tmp_path / "claims.md").read_text()
    assert not result.complete  # eleven claims are still to be measured
    assert str(tmp_path) not in (tmp_path / "claims.json").read_text()
