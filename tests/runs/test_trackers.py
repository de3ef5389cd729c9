import os
import sys
from types import ModuleType
from typing import Any

import pytest

from sortyard.errors import InputError
from tests.training.tiny import TinyModel, new_run, train_tiny


class Fake(ModuleType):
    """Stands for trackio or wandb, and remembers what it is told."""

    def __init__(self, name: str, fail_at: str = "") -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fail_at = fail_at
        for what in ("init", "log", "finish"):
            setattr(self, what, lambda *args, _what=what, **kwargs: self.note(_what, args, kwargs))

    def note(self, what: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((what, args, kwargs))
        if what == self.fail_at:
            raise ConnectionError("no way out")


@pytest.fixture
def fake(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_PROJECT", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def install(name: str, **settings: str) -> Fake:
        module = Fake(name, **settings)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return install


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_gets_every_line(tmp_path, fake, name):
    module, run = fake(name), new_run(tmp_path / "run")
    train_tiny(run, trackers=[name])
    assert [what for what, _, _ in module.calls] == ["init", "log", "log", "log", "finish"]
    assert module.calls[0][2]["config"] == {"steps": 8}
    logged = {kwargs["step"]: args[0]["train/loss"] for what, args, kwargs in module.calls if what == "log"}
    assert logged == {line["step"]: line["loss"] for line in run.read_metrics("train")}


def test_wandb_is_offline_unless_the_environment_says_otherwise(tmp_path, fake, monkeypatch):
    module = fake("wandb")
    train_tiny(new_run(tmp_path / "one"), trackers=["wandb"])
    monkeypatch.setenv("WANDB_MODE", "online")
    train_tiny(new_run(tmp_path / "two"), trackers=["wandb"])
    modes = [kwargs["mode"] for what, _, kwargs in module.calls if what == "init"]
    assert modes == ["offline", "online"]


def test_trackio_gets_no_address_and_sends_no_analytics(tmp_path, fake):
    module = fake("trackio")
    train_tiny(new_run(tmp_path / "run"), trackers=["trackio"])
    assert set(module.calls[0][2]) == {"project", "name", "config", "resume"}
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_missing_package_is_told_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    run, model = new_run(tmp_path / "run"), TinyModel()
    with pytest.raises(InputError, match=f"pip install {name}"):
        train_tiny(run, model=model, trackers=[name])
    assert model.num_forwards == 0
    assert not run.metrics.exists()


@pytest.mark.parametrize("fail_at", ["init", "log", "finish"])
def test_a_tracker_that_fails_costs_a_warning_and_not_the_run(tmp_path, fake, fail_at):
    module, run = fake("wandb", fail_at=fail_at), new_run(tmp_path / "run")
    assert train_tiny(run, trackers=["wandb"]).state.finished == "steps"
    assert [what for what, _, _ in module.calls][-1] == fail_at
    warnings = [event["message"] for event in run.read_events() if event["event"] == "warning"]
    assert warnings == [f"wandb failed at {fail_at} and gets no more metrics (no way out)"]
