"""Studies of trainings: arms, runs that go on where they stopped, and what follows from learning curves."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sortyard.errors import InputError
from sortyard.evaluation.cost import meta_model, parameter_counts
from sortyard.model.configuration import SortyardConfig
from sortyard.recipe import load_recipe, recipes_folder
from sortyard.studies.bench.results import BenchResult, new_result
from sortyard.studies.crew import Ended
from sortyard.studies.trained import study
from sortyard.studies.trained.arms import ABLATIONS, BASE, DENSE_ACTIVE, DENSE_TOTAL, OURS, ablation_arms, twin_arms
from sortyard.studies.trained.comparing import at_equal_cost, efficiency
from sortyard.studies.trained.curves import Curve, loss_at, reached
from sortyard.studies.trained.examples import Answers, resampled_gain
from sortyard.studies.trained.runs import ArmRun, Task, prepare_text
from sortyard.studies.trained.study import TrainedPlan
from sortyard.studies.trained.twin import run_twin, summarise
from sortyard.studies.trained.twin_page import twin_text

SHIPPED = sorted((recipes_folder() / ABLATIONS).glob("*.yaml"))
LAPTOP = load_recipe("twin-laptop")


def curve(losses: list[float], *, seconds_per_step: float = 1.0) -> Curve:
    steps = [10.0 * (place + 1) for place in range(len(losses))]
    return Curve(
        steps=steps, flops=[100 * step for step in steps], losses=losses,
        processor_seconds=[seconds_per_step * step for step in steps], parameters=2, active_parameters=1, sparsity=0.5,
        seconds=1.0,
    )  # fmt: skip


class TestArms:
    def test_twins_have_the_parameters_that_they_should(self) -> None:
        counts = {}
        for arm in twin_arms(LAPTOP.recipe):
            config = SortyardConfig.from_options(arm.recipe.model, vocab_size=8000, causal=False)
            counts[arm.name] = parameter_counts(meta_model(config, head="masked_lm"))
        assert counts[DENSE_ACTIVE].total == pytest.approx(counts[OURS].active, rel=0.005)
        assert counts[DENSE_TOTAL].total == pytest.approx(counts[OURS].total, rel=0.005)

    def test_a_dense_recipe_has_no_twin(self) -> None:
        dense = load_recipe("twin-laptop", overrides=["model.num_experts=1"])
        with pytest.raises(InputError, match="dense itself"):
            twin_arms(dense.recipe)

    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_every_shipped_ablation_builds_and_changes_the_model(self, path: Path) -> None:
        base, arm = ablation_arms(LAPTOP.recipe, source=LAPTOP.source, places=[path])
        assert base.name == BASE
        assert arm.recipe.model != base.recipe.model
        assert arm.recipe.pretrain == base.recipe.pretrain
        assert arm.title
        assert arm.title != path.stem
        config = SortyardConfig.from_options(arm.recipe.model, vocab_size=100, causal=False)
        meta_model(config, head="masked_lm")

    def test_a_file_that_is_no_change_is_refused_by_file_and_line(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("# mine\nmodel:\n  contextt: none\n")
        with pytest.raises(InputError, match=r"mine\.yaml:3.*contextt"):
            ablation_arms(LAPTOP.recipe, source=LAPTOP.source, places=[path])
        path.write_text("model: {num_experts: 8}\n")
        with pytest.raises(InputError, match="changes nothing"):
            ablation_arms(LAPTOP.recipe, source=LAPTOP.source, places=[path])
        with pytest.raises(InputError, match="no such file or folder"):
            ablation_arms(LAPTOP.recipe, source=LAPTOP.source, places=[tmp_path / "nowhere"])
        path.write_text("tokenizer: {vocab_size: 4000}\nmodel: {context: none}\n")
        with pytest.raises(InputError, match=r"changes tokenizer\.vocab_size, but all arms read the same"):
            ablation_arms(LAPTOP.recipe, source=LAPTOP.source, places=[path])
        (tmp_path / "base.yaml").write_text("model: {context: none}\n")
        with pytest.raises(InputError, match="called base already"):
            ablation_arms(LAPTOP.recipe, source=LAPTOP.source, places=[tmp_path / "base.yaml"])


class TestCurves:
    def test_a_loss_is_reached_between_evaluations(self) -> None:
        assert reached([10, 20, 30], [5.0, 4.0, 3.0], target=3.5) == pytest.approx(25)
        assert reached([10, 20, 30], [5.0, 4.0, 3.0], target=4.0) == pytest.approx(20)
        assert reached([10, 20, 30], [5.0, 4.0, 3.0], target=6.0) == 10
        assert reached([10, 20, 30], [5.0, 4.0, 3.0], target=2.9) is None

    def test_what_rises_again_counts_from_the_first_time(self) -> None:
        assert reached([10, 20, 30, 40], [5.0, 3.0, 4.0, 2.0], target=3.0) == 20

    def test_a_loss_outside_of_what_was_evaluated_is_unknown(self) -> None:
        assert loss_at([10, 20], [5.0, 4.0], cost=15) == pytest.approx(4.5)
        assert loss_at([10, 20], [5.0, 4.0], cost=25) is None

    def test_efficiency_is_the_twins_cost_over_ours(self) -> None:
        ours = {"0": curve([5.0, 3.0, 2.0], seconds_per_step=2.0), "1": curve([5.0, 4.0, 2.0], seconds_per_step=2.0)}
        twin = {"0": curve([5.0, 4.0, 3.0]), "1": curve([5.0, 4.5, 3.0])}
        found = efficiency(ours, twin)
        assert found["steps"]["by_seed"] == pytest.approx({"0": 30 / 20 - 1, "1": 30 / 25 - 1})
        assert found["processor_seconds"]["by_seed"] == pytest.approx({"0": 30 / 40 - 1, "1": 30 / 50 - 1})
        assert found["steps"]["gain"]["mean"] == pytest.approx(0.35)

    def test_a_loss_that_is_not_reached_has_no_mean_but_a_bound(self) -> None:
        found = efficiency({"0": curve([5.0, 4.0])}, {"0": curve([5.0, 4.0, 3.0])})
        assert found["steps"] == {"by_seed": {"0": None}, "gain": None, "at_most": pytest.approx(0.5)}

    def test_the_bound_is_one_of_the_mean_over_all_seeds(self) -> None:
        ours = {"0": curve([5.0, 3.0, 2.0]), "1": curve([5.0, 4.5, 4.0])}
        found = efficiency(ours, dict.fromkeys(ours, curve([5.0, 4.0, 3.0])))
        assert found["steps"]["by_seed"] == {"0": pytest.approx(0.5), "1": None}
        assert found["steps"]["at_most"] == pytest.approx((0.5 + 0.0) / 2)

    def test_a_run_of_unknown_time_counts_by_steps_alone(self) -> None:
        ours = {"0": curve([5.0, 3.0]), "1": replace(curve([5.0, 3.0]), processor_seconds=[])}
        twin = dict.fromkeys(ours, curve([5.0, 4.0]))
        assert efficiency(ours, twin)["processor_seconds"]["by_seed"].keys() == {"0"}
        assert efficiency(ours, twin)["steps"]["by_seed"].keys() == {"0", "1"}
        gains = at_equal_cost(ours, twin)
        assert (gains["processor_seconds"]["seeds"], gains["steps"]["seeds"]) == (1, 2)

    def test_equal_time_is_that_of_the_one_who_ends_first(self) -> None:
        ours, other = {"0": curve([5.0, 4.0, 3.0], seconds_per_step=2.0)}, {"0": curve([5.0, 4.5, 4.0])}
        gains = at_equal_cost(ours, other)
        assert gains["steps"]["mean"] == pytest.approx(1.0)
        assert gains["processor_seconds"]["mean"] == pytest.approx(4.0 - 4.5)  # after 30 s: our 15th step
        assert gains["steps"]["shares"] == {"ours": 1, "other": 1}
        assert gains["processor_seconds"]["shares"] == {"ours": 0.5, "other": 1}  # ours is not cooled down there

    def test_the_table_says_where_in_each_run_a_row_is_read(self) -> None:
        cells = {
            f"{arm}/seed0": {"arm": arm, "seed": 0, "score": None, **found.record()}
            for arm, found in ((OURS, curve([5.0, 4.0])), (DENSE_ACTIVE, curve([5.0, 4.5, 4.2, 4.1])))
        }
        result = new_result(
            "twin", what="", command="", seed=0, threads=1, device="cpu", settings={}, sources=("studies",)
        )
        result.cells, result.summary = cells, summarise(cells) | {"on_examples": {}}
        row = next(line for line in twin_text(result).splitlines() if line.startswith("steps, against"))
        assert row.split()[-2:] == ["100%", "50%"]
        for gains in result.summary["gains"].values():
            for gain in gains.values():
                del gain["shares"]  # as earlier versions kept it
        row = next(line for line in twin_text(result).splitlines() if line.startswith("steps, against"))
        assert row.split()[-2:] == ["-", "-"]


def test_a_command_to_repeat_names_no_place_of_this_machine(tmp_path: Path) -> None:
    places = [f"tokenizer.path={tmp_path / 'words'}", f'pretrain.data.path="{tmp_path / "corpus"}"']
    loaded = load_recipe("twin-laptop", overrides=["model.num_experts=4", *places, "pretrain.loop.trackers=[]"])
    task = Task("sst2", str(tmp_path / "glue"))
    words = TrainedPlan(loaded, str(tmp_path / "texts"), seeds=3, jobs=2, task=task).command("twin")
    assert words == (
        "sortyard study twin twin-laptop model.num_experts=4 tokenizer.path=words pretrain.data.path=corpus "
        "pretrain.loop.trackers=[] --data texts --seeds 3 --jobs 2 "
        "--task sst2 --task-data glue"
    )


class TestRuns:
    @pytest.fixture
    def run(self, tmp_path: Path) -> ArmRun:
        return ArmRun("sparse", 0, tmp_path / "sparse-seed0", ("pretrain", "sparse.yaml"))

    def begun(self, run: ArmRun) -> None:
        run.folder.mkdir(exist_ok=True)
        (run.folder / "resolved.yaml").touch()

    def test_seconds_add_up_over_interruptions(self, run: ArmRun) -> None:
        run.note_begin()
        self.begun(run)
        run.note_end(Ended(130, 3.0, 2.0, was_stopped=True))
        assert not run.is_done
        assert run.command()[0] == "resume"
        run.note_begin()
        run.note_end(Ended(0, 4.0, 3.0, was_stopped=False))
        assert run.is_done
        assert run.spent == {"done": True, "seconds": 7.0, "processor_seconds": 5.0, "open": False, "lost": False}

    def test_the_time_of_a_process_that_nobody_saw_end_is_unknown(self, run: ArmRun) -> None:
        run.note_begin()
        self.begun(run)
        run.note_begin()
        run.note_end(Ended(0, 4.0, 3.0, was_stopped=False))
        assert run.is_done
        assert run.spent["lost"] is True

    def test_what_begins_anew_costs_anew(self, run: ArmRun) -> None:
        run.note_begin()
        run.note_begin()
        run.note_end(Ended(0, 4.0, 3.0, was_stopped=False))
        assert run.spent["lost"] is False

    def test_another_text_in_the_same_folder_is_refused(self, tmp_path: Path) -> None:
        texts = []
        for name in ("one", "other"):
            texts.append(tmp_path / f"{name}.txt")
            texts[-1].write_text("\n\n".join(f"{name} text about many small things, {number}" for number in range(50)))
        recipe = load_recipe("twin-laptop", overrides=["tokenizer.vocab_size=300"]).recipe
        said: list[str] = []
        folder = prepare_text(recipe, data=str(texts[0]), work=tmp_path / "w", say=said.append)
        assert prepare_text(recipe, data=str(texts[0]), work=tmp_path / "w", say=said.append) == folder
        with pytest.raises(InputError, match="other data"):
            prepare_text(recipe, data=str(texts[1]), work=tmp_path / "w", say=said.append)


class TestWork:
    """What is in the folder of the runs when a study goes on there."""

    @pytest.fixture
    def plan(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainedPlan:
        monkeypatch.setattr(study, "train", lambda *_, **__: None)
        text = tmp_path / "text.txt"
        text.write_text("\n\n".join(f"a text about many small things, {number}" for number in range(50)))
        loaded = load_recipe("twin-laptop", overrides=["tokenizer.vocab_size=300"])
        for name in ("train", "dev"):
            rows = (json.dumps({"text": f"{word} {number}", "label": word}) for number in range(9) for word in "ab")
            (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        return TrainedPlan(loaded, str(text), seeds=1, jobs=1, task=Task("custom", str(tmp_path)))

    def go(self, plan: TrainedPlan, tmp_path: Path, said: list[str] | None = None) -> BenchResult:
        said = [] if said is None else said
        return run_twin(plan, folder=tmp_path, work=tmp_path / "w", say=said.append)[0]

    def test_other_code_is_refused(self, plan: TrainedPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go(plan, tmp_path)
        self.go(plan, tmp_path)
        monkeypatch.setattr(study, "code_digest", lambda _: "other")
        with pytest.raises(InputError, match="another code; give another --work folder, or remove this one"):
            self.go(plan, tmp_path)

    def test_other_examples_are_refused_and_a_task_may_come_later(self, plan: TrainedPlan, tmp_path: Path) -> None:
        self.go(replace(plan, task=None), tmp_path)
        self.go(plan, tmp_path)
        dev = tmp_path / "dev.jsonl"
        dev.write_text(dev.read_text().replace("a 3", "a 4"))
        with pytest.raises(InputError, match="another examples of custom"):
            self.go(plan, tmp_path)

    def test_an_unknown_task_is_refused_before_anything_is_trained(self, plan: TrainedPlan, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"--task sst3: is none of .*sst2"):
            self.go(replace(plan, task=Task("sst3", str(tmp_path))), tmp_path)

    def test_another_machine_goes_on_and_is_told_of(self, plan: TrainedPlan, tmp_path: Path) -> None:
        said: list[str] = []
        own = self.go(plan, tmp_path, said)
        assert own.settings["machines"] == [own.machine]
        assert not any("machines" in line for line in said)
        other = own.machine | {"cpu": "Another"}
        (tmp_path / "w" / "machines.json").write_text(json.dumps({"machines": [other]}))
        assert self.go(plan, tmp_path, said).settings["machines"] == [other, own.machine]
        assert any("the runs are of 2 machines" in line and "Another" in line for line in said)

    def test_only_the_evaluation_at_the_end_is_the_runs_score(self, tmp_path: Path) -> None:
        run = ArmRun("sparse", 0, tmp_path / "run", ("finetune", "sparse.yaml"))
        (run.folder / "eval").mkdir(parents=True)
        for number in range(20):  # by `sortyard eval`, some of no task
            (run.folder / "eval" / f"text{number}-again.json").write_text(json.dumps({"perplexity": 9.0}))
        end = {"task": "sst2", "main_metric": "accuracy", "metrics": {"accuracy": 0.8}}
        (run.folder / "eval" / "sst2.json").write_text(json.dumps(end))
        assert study._score(run) == {"metric": "accuracy", "value": 0.8}


class TestExamples:
    LABELS = np.tile([0, 1], 50)

    def test_the_gain_is_the_difference_in_score_over_the_seeds(self) -> None:
        right, wrong = Answers(self.LABELS, self.LABELS), self.LABELS.copy()
        wrong[:20] = 1 - wrong[:20]
        other = Answers(wrong, self.LABELS)
        gain = resampled_gain({"0": right, "1": other}, {"0": other, "1": other}, metric="accuracy")
        assert gain is not None
        assert gain.mean == pytest.approx(0.1)
        assert 0.05 < gain.low < 0.1 < gain.high < 0.15
        assert (gain.seeds, gain.examples) == (2, 100)

    def test_equal_answers_gain_nothing_whatever_is_drawn(self) -> None:
        same = {"0": Answers(1 - self.LABELS, self.LABELS)}
        gain = resampled_gain(same, same, metric="f1")
        assert gain is not None
        assert (gain.mean, gain.low, gain.high) == (0, 0, 0)

    def test_other_examples_are_not_compared(self) -> None:
        one, other = Answers(self.LABELS, self.LABELS), Answers(self.LABELS, 1 - self.LABELS)
        assert resampled_gain({"0": one}, {"0": other}, metric="accuracy") is None
        assert resampled_gain({"0": one}, {"1": one}, metric="accuracy") is None
