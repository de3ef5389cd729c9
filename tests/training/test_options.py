import subprocess
import sys

import pytest
from pydantic import ValidationError

from sortyard.training.options import LoopOptions, ScheduleOptions


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "exactly one"),
        (
            {"steps": 5, "compile": True, "activation_checkpointing": "selective"},
            "set activation_checkpointing to none",
        ),
        ({"steps": 5, "epochs": 1.0}, "exactly one"),
        ({"steps": 5, "early_stopping_patience": 2}, "eval_every"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"steps": 5, "micro_batch": 2}, "Extra inputs"),
    ],
    ids=["no length", "compiled and selective", "two lengths", "patience without evaluation", "no step", "unknown key"],
)
def test_refuses(values, words):
    with pytest.raises(ValidationError, match=words):
        LoopOptions(**values)


def test_wsd_phases_must_fit():
    with pytest.raises(ValidationError, match="more than 1"):
        ScheduleOptions(name="wsd", warmup_ratio=0.6, decay_ratio=0.6)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 7), (2.5, 18), (0.01, 1)])
def test_epochs_become_steps(epochs, steps):
    assert LoopOptions(epochs=epochs).total_steps(7) == steps


@pytest.mark.parametrize(
    "module",
    [
        "training.options",
        "training.schedule",
        "runs.folder",
        "runs.lock",
        "runs.environment",
        "runs.progress",
        "runs.trackers",
    ],
)
def test_needs_no_torch(module):
    code = f"import sys, sortyard.{module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("given", "mode"),
    [(True, "full"), (False, "none"), ("off", "none"), ("none", "none"), ("full", "full"), ("selective", "selective")],
)
def test_activation_checkpointing_reads_the_old_switch(given, mode):
    assert LoopOptions(steps=1, activation_checkpointing=given).activation_checkpointing == mode


@pytest.mark.parametrize("given", [1, "some", None], ids=str)
def test_activation_checkpointing_has_three_modes(given):
    with pytest.raises(ValidationError, match="'none', 'full' or 'selective'"):
        LoopOptions(steps=1, activation_checkpointing=given)
