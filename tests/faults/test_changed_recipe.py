"""A run goes on under the recipe that it was begun with; what differs is shown, and must be allowed by name."""

from pathlib import Path

import pytest

from sortyard.cli.main import main
from sortyard.errors import InputError
from sortyard.jobs.changing import settled_recipe
from sortyard.recipe import Recipe, load_recipe, resolved_yaml
from sortyard.runs.folder import RunFolder
from tests.training.tiny import TinySource, new_run, train_tiny

STEPS = "pretrain.loop.steps"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    recipe = load_recipe("small").recipe
    return RunFolder.create(tmp_path / "run", recipe="", resolved=resolved_yaml(recipe), environment={})


def settle(run: RunFolder, *overrides: str, allow: tuple[str, ...] = ()) -> Recipe:
    return settled_recipe(run, overrides=overrides, allow=allow)


def steps_of(recipe: Recipe) -> int | None:
    assert recipe.pretrain is not None
    return recipe.pretrain.loop.steps


def edit(run: RunFolder, old: str, new: str) -> None:
    text = run.resolved.read_text()
    assert old in text
    run.resolved.write_text(text.replace(old, new, 1))


def test_an_unchanged_recipe_is_no_matter(run: RunFolder) -> None:
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    assert settle(run) == load_recipe("small").recipe
    assert settle(run, f"{STEPS}={steps_of(settle(run))}") == load_recipe("small").recipe
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before


def test_a_change_is_shown_and_refused(run: RunFolder) -> None:
    before = run.resolved.read_bytes()
    with pytest.raises(InputError) as caught:
        settle(run, f"{STEPS}=7", "seed=99")
    assert f"  {STEPS}: {steps_of(load_recipe('small').recipe)} -> 7\n" in str(caught.value)
    assert f"--allow seed --allow {STEPS}" in str(caught.value)
    with pytest.raises(InputError, match="seed: ") as caught:
        settle(run, f"{STEPS}=7", "seed=99", allow=(STEPS,))
    assert f"{STEPS}:" not in str(caught.value)
    assert run.resolved.read_bytes() == before


def test_an_allowed_change_becomes_the_runs_own(run: RunFolder) -> None:
    assert steps_of(settle(run, f"{STEPS}=7", allow=(STEPS,))) == 7
    assert steps_of(settle(run)) == 7
    assert steps_of(settle(run, f"{STEPS}=7", allow=(STEPS,))) == 7  # the same command again
    assert len(run.accepted_recipes()) == 2
    (event,) = run.read_events()
    assert event["changes"][STEPS][1] == 7


def test_an_edited_file_is_noticed(run: RunFolder) -> None:
    edit(run, "seed: 0", "seed: 5")
    with pytest.raises(InputError, match=r"seed: 0 -> 5\n"):
        settle(run)
    assert settle(run, allow=("seed",)).seed == 5
    edit(run, "seed: 5", "seed:    5  # as it is")
    assert settle(run).seed == 5


def test_a_key_that_is_none_is_refused(run: RunFolder) -> None:
    with pytest.raises(InputError, match=r"--allow pretrain\.steps: .* no such key"):
        settle(run, allow=("pretrain.steps",))


def test_a_run_of_an_early_version_takes_changes_too(run: RunFolder) -> None:
    run.accepted.unlink()
    assert settle(run).seed == 0
    run.accepted.unlink()
    with pytest.raises(InputError, match="seed: 0 -> 3"):
        settle(run, "seed=3")


@pytest.mark.parametrize("content", ["[", "{}", "[1]", "[" * 100_000])
def test_damaged_notes_are_named(run: RunFolder, content: str) -> None:
    run.accepted.write_text(content)
    with pytest.raises(InputError, match=r"accepted\.json: "):
        settle(run)


def test_the_verb_shows_the_difference(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "job.json").write_text('{"verb": "pretrain"}')
    assert main(["resume", str(run.path), f"{STEPS}=7"]) == 2
    assert "-> 7\nWhat is trained from here on" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    source = TinySource()
    source.fail_at = 4
    with pytest.raises(RuntimeError):
        train_tiny(run, source=source, checkpoint_every=2)
    other = RunFolder.create(tmp_path / "other", recipe="", resolved="steps: 9\n", environment={})
    run.checkpoints.rename(tmp_path / "moved")
    other.checkpoints.rmdir()
    (tmp_path / "moved").rename(other.checkpoints)
    with pytest.raises(InputError, match=r"step-00000004: was written under a recipe that .*other never had"):
        train_tiny(other, checkpoint_every=2)
    other.accept_recipe("steps: 8\n")
    assert train_tiny(other).state.step == 8


def test_a_finished_run_may_be_given_more_steps(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    train_tiny(run)
    first = (run.model / "model.safetensors").read_bytes()
    result = train_tiny(run, steps=12)
    assert (result.state.step, result.was_finished) == (12, False)
    assert (run.model / "model.safetensors").read_bytes() != first
    assert train_tiny(run, steps=12).was_finished
