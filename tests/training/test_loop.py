import errno
import os
import signal

import pytest
import torch

from sortyard.errors import InputError
from sortyard.parallel.watch import NoWatch
from sortyard.runs.folder import RunFolder
from sortyard.stop_requests import StopSignals
from sortyard.training.session import Session
from tests.training.tiny import TinyModel, TinySource, new_run, same_bits, tensors_of, train_tiny, without_times


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return new_run(tmp_path / "run")


def events(run, kind):
    return [record for record in run.read_events() if record["event"] == kind]


def scripted(values):
    """An evaluation that returns the given accuracies one after the other."""
    remaining = iter(values)
    return lambda model: {"accuracy": next(remaining)}


def test_a_run_leaves_its_records(run):
    result = train_tiny(run, eval_every=4, evaluate=lambda model: {"accuracy": 0.5, "odd": float("nan")})
    assert (result.state.step, result.state.finished, result.was_finished) == (8, "steps", False)
    lines = run.read_metrics("train")
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert lines[-1]["tokens"] == result.state.tokens == 8 * 2 * 3 * 12
    assert lines[-1]["epoch"] == pytest.approx(8 / 5)
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["task_loss"] + lines[-1]["balance_loss"])
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["sparsity"] == 0.5
    assert 0.25 <= lines[-1]["utilisation"] <= 1
    assert [(line["step"], line["accuracy"], line["odd"]) for line in run.read_metrics("eval")] == [
        (4, 0.5, None),
        (8, 0.5, None),
    ]
    steps, loads = run.read_routing()
    assert steps.tolist() == [3, 6, 8]
    assert loads.sum(-1) == pytest.approx(1.0)
    assert [record["event"] for record in run.read_events()] == [
        "start", "evaluation", "checkpoint", "evaluation", "checkpoint", "finish",
    ]  # fmt: skip
    assert (run.model / "model.safetensors").is_file()


@pytest.mark.parametrize("checkpoint_every", [2, 3], ids=["inside a log window", "at its border"])
@pytest.mark.parametrize(
    ("precision", "behind"), [("fp32", False), ("fp32", True), ("bf16", False), ("fp16", True)], ids=str
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, run, checkpoint_every, precision, behind):
    options = {"eval_every": 4, "precision": precision, "async_checkpoints": behind}
    options["checkpoint_every"] = checkpoint_every
    whole = new_run(tmp_path / "whole")
    train_tiny(whole, **options, evaluate=lambda model: {"bias": float(model.selection_bias.sum())})
    for fail_at in (1, 5, 7):
        source = TinySource()
        source.fail_at = fail_at
        with pytest.raises(RuntimeError, match="power cut"):
            train_tiny(RunFolder.open(run.path), source=source, **options, evaluate=lambda model: {"bias": 0.0})
    reopened = RunFolder.open(run.path)
    train_tiny(reopened, **options, evaluate=lambda model: {"bias": float(model.selection_bias.sum())})
    assert same_bits(tensors_of(run, 8), tensors_of(whole, 8))
    assert without_times(run.read_metrics("train")) == without_times(whole.read_metrics("train"))
    assert run.read_metrics("eval")[-1] == whole.read_metrics("eval")[-1]
    for ours, theirs in zip(run.read_routing(), whole.read_routing(), strict=True):
        assert (ours == theirs).all()
    assert len(events(run, "error")) == 3
    assert [record["step"] for record in events(run, "resume")] == [5 // checkpoint_every * checkpoint_every, 6]


def test_a_finished_run_is_left_as_it_is(run):
    train_tiny(run)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    model = TinyModel(seed=5)
    result = train_tiny(RunFolder.open(run.path), model=model)
    assert result.was_finished
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert torch.equal(model.experts, tensors_of(run, 8)["experts"])


def test_a_kill_between_the_last_checkpoint_and_the_model_folder_is_made_good(run):
    train_tiny(run)
    (run.model / "model.safetensors").unlink()
    kept = [line for line in run.events.read_text().splitlines(keepends=True) if '"finish"' not in line]
    run.events.write_text("".join(kept))
    assert train_tiny(RunFolder.open(run.path)).was_finished
    assert (run.model / "model.safetensors").is_file()


def test_activation_checkpointing_changes_nothing(tmp_path, run):
    other = new_run(tmp_path / "other")
    train_tiny(run)
    train_tiny(other, activation_checkpointing="full")
    assert same_bits(tensors_of(run, 8), tensors_of(other, 8))


def test_one_bad_step_is_a_warning_that_names_its_samples(run):
    model = TinyModel()
    model.poison = {5}
    train_tiny(run, model=model)
    (warning,) = events(run, "warning")
    assert warning["step"] == 3
    assert "samples 12 to 17" in warning["message"]
    assert "micro-batch 1" in warning["message"]
    assert run.read_metrics("train")[0]["loss"] > 0


def test_bad_steps_in_a_row_end_the_run_with_good_weights(run):
    model = TinyModel()
    model.poison = set(range(6, 100))
    with pytest.raises(InputError, match="max_bad_steps is 2"):
        train_tiny(run, model=model, max_bad_steps=2, checkpoint_every=1)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert events(run, "error")[0]["step"] == 5


def test_step_without_targets_is_a_warning(run):
    train_tiny(run, source=TinySource(without_targets=(2, 3)))
    assert ["no token" in record["message"] for record in events(run, "warning")] == [True, True]


def test_the_best_weights_are_kept_and_exported(run):
    model = TinyModel()
    accuracies = [0.1, 0.9, 0.3, 0.2]
    result = train_tiny(
        run, model=model, eval_every=2, keep_best=True, keep_checkpoints=1,
        evaluate=scripted(accuracies), best_metric="accuracy",
    )  # fmt: skip
    assert (result.state.best_step, result.state.best_value) == (4, 0.9)
    assert sorted(path.name for path in run.checkpoints.glob("step-*")) == ["step-00000004", "step-00000008"]
    assert torch.equal(model.experts, tensors_of(run, 4)["experts"])
    assert not torch.equal(model.experts, tensors_of(run, 8)["experts"])


def test_losses_are_better_when_lower(run):
    losses = iter([float("inf"), 1.0, 2.0, float("nan")])
    result = train_tiny(
        run, eval_every=2, evaluate=lambda model: {"validation_loss": next(losses)}, best_metric="validation_loss"
    )
    assert (result.state.best_step, result.state.best_value) == (4, 1.0)


def test_a_disk_that_is_full_when_records_close_does_not_hide_what_broke_off(run, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sortyard.runs.trackers.TensorBoard.close", full)
    source = TinySource()
    source.fail_at = 4
    with pytest.raises(RuntimeError, match="power cut"):
        train_tiny(run, source=source, tensorboard=True)


def test_early_stopping(run):
    result = train_tiny(
        run, steps=100, eval_every=2, early_stopping_patience=2,
        evaluate=scripted([0.5, 0.6, 0.6, 0.4]), best_metric="accuracy",
    )  # fmt: skip
    assert (result.state.step, result.state.finished) == (8, "early_stopping")
    assert run.read_metrics("train")[-1]["step"] == 8


@pytest.mark.parametrize("eval_every", [0, 4])
def test_an_evaluation_that_fails_at_the_end_costs_no_training(run, tmp_path, eval_every):
    def evaluate(model):
        if run.read_metrics("train") and run.read_metrics("train")[-1]["step"] == 6 and not mended:
            raise MemoryError("too large")
        return {"loss": float(model.experts.detach().abs().sum())}

    mended: list[bool] = []
    with pytest.raises(MemoryError):
        train_tiny(run, evaluate=evaluate, best_metric="loss", eval_every=eval_every)
    assert not (run.model / "model.safetensors").exists()
    mended.append(True)
    result = train_tiny(run, source=TinySource(without_targets=range(100)), evaluate=evaluate, best_metric="loss")
    assert (result.state.step, result.state.finished, result.was_finished) == (8, "steps", False)
    other = new_run(tmp_path / "other")
    train_tiny(other, evaluate=evaluate, best_metric="loss", eval_every=eval_every)
    assert without_times(run.read_metrics()) == without_times(other.read_metrics())
    assert same_bits(tensors_of(run, 8), tensors_of(other, 8))
    assert result.state.best_step in (4, 8)


def test_a_run_that_was_over_goes_on_where_the_recipe_asks_for_more(run):
    script = iter([0.5, 0.4, 0.6, 0.7])
    options = {"evaluate": lambda model: {"accuracy": next(script)}, "best_metric": "accuracy", "eval_every": 2}
    assert train_tiny(run, early_stopping_patience=1, **options).state.finished == "early_stopping"
    assert train_tiny(run, early_stopping_patience=1, **options).was_finished
    result = train_tiny(run, early_stopping_patience=3, **options)
    assert (result.state.step, result.state.finished) == (8, "steps")


def test_processes_are_watched_while_they_load(run, monkeypatch):
    order, restore = [], Session.restore
    monkeypatch.setattr(NoWatch, "__enter__", lambda watch: order.append("watched") or watch)
    monkeypatch.setattr(NoWatch, "beat", lambda watch, what, **_: order.append(what))
    monkeypatch.setattr(Session, "restore", lambda session, run: order.append("restored") or restore(session, run))
    train_tiny(run)
    assert order[:4] == ["watched", "meeting the others", "loading the checkpoint", "restored"]


def test_more_seconds_than_a_run_had(run):
    assert train_tiny(run, steps=40, max_seconds=1e-6).state.finished == "max_seconds"
    assert train_tiny(run, steps=40, max_seconds=1e-6).was_finished
    assert train_tiny(run, steps=40, max_seconds=0).state.finished == "steps"


def test_best_weights_that_are_damaged_are_said_to_be_lost(run):
    options = {"eval_every": 2, "keep_best": True, "best_metric": "accuracy"}
    figures = iter([0.1, 0.9, 0.3, 0.2])

    def evaluate(model):
        value = next(figures)
        if value == 0.2:
            (run.checkpoints / "step-00000004" / "model.safetensors").write_bytes(b"")
        return {"accuracy": value}

    train_tiny(run, evaluate=evaluate, **options)
    messages = [event["message"] for event in events(run, "warning")]
    assert "the best weights, of step 4, are lost: the model has those of 8" in messages


def test_keep_best_without_evaluation_is_refused(run):
    with pytest.raises(InputError, match="evaluation data"):
        train_tiny(run, keep_best=True)


def test_best_metric_must_be_measured(run):
    with pytest.raises(InputError, match="accuracy"):
        train_tiny(run, evaluate=lambda model: {"loss": 1.0}, best_metric="accuracy")


def test_max_seconds_ends_the_run_as_finished(run):
    result = train_tiny(run, steps=10**6, max_seconds=0.05)
    assert result.state.finished == "max_seconds"
    assert result.state.step < 10**6
    assert (run.model / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["SIGTERM", "Ctrl-C"]
)
@pytest.mark.parametrize("behind", [False, True], ids=["before going on", "behind"])
def test_signals_save_and_leave(tmp_path, run, number, error, behind):
    class Interrupted(TinySource):
        def step(self, step, share=(0, 1)):
            if step == 4:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)  # by another way, as torchrun passes on what a scheduler sends to all
            return super().step(step)

    before = signal.getsignal(number)
    with pytest.raises(error) as caught:
        train_tiny(run, source=Interrupted(), checkpoint_every=2, async_checkpoints=behind)
    assert (run.checkpoints / "latest").read_text() == "step-00000005\n"
    assert [event["step"] for event in events(run, "checkpoint")] == [2, 4, 5]
    assert signal.getsignal(number) is before
    if error is SystemExit:
        assert caught.value.code == 143
    assert events(run, "stop")[0]["step"] == 5
    train_tiny(RunFolder.open(run.path))
    whole = new_run(tmp_path / "whole")
    train_tiny(whole)
    assert same_bits(tensors_of(run, 8), tensors_of(whole, 8))
    assert without_times(run.read_metrics()) == without_times(whole.read_metrics())


def test_a_signal_during_the_last_evaluation_is_heeded(run):
    def evaluate(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 1.0}

    with pytest.raises(SystemExit) as caught:
        train_tiny(run, evaluate=evaluate, eval_every=0)
    assert caught.value.code == 143
    assert (run.model / "model.safetensors").is_file()


@pytest.fixture
def interruptible():
    """Python's own answer to Ctrl-C, which a shell takes from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_later_signal_acts_at_once(monkeypatch):
    times = iter([100.0, 101.0, 103.0])
    monkeypatch.setattr("sortyard.stop_requests.time.monotonic", lambda: next(times))
    with StopSignals() as signals, pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the third one raises
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
            assert signals.received == signal.SIGTERM


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up here")
def test_a_closed_terminal_is_a_request_to_stop_unless_it_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == signal.SIGTERM
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_number_of_threads_is_a_warning(run, monkeypatch):
    source = TinySource()
    source.fail_at = 4
    with pytest.raises(RuntimeError):
        train_tiny(run, source=source, checkpoint_every=2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    train_tiny(RunFolder.open(run.path), checkpoint_every=2)
    (warning,) = events(run, "warning")
    assert "is now 77" in warning["message"]


def test_damaged_checkpoint_falls_back_and_ends_the_same(tmp_path, run):
    source = TinySource()
    source.fail_at = 6
    with pytest.raises(RuntimeError):
        train_tiny(run, source=source, checkpoint_every=2)
    (run.checkpoints / "step-00000006" / "optimizer.safetensors").write_bytes(b"nothing")
    train_tiny(RunFolder.open(run.path), checkpoint_every=2)
    whole = new_run(tmp_path / "whole")
    train_tiny(whole)
    assert "optimizer.safetensors" in events(run, "warning")[0]["message"]
    assert events(run, "resume")[0]["step"] == 4
    assert same_bits(tensors_of(run, 8), tensors_of(whole, 8))


def test_full_disk_under_the_records_is_said_and_survived(tmp_path, run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_routing", full)
        with pytest.raises(InputError, match="No space left on device; training broke off after step 3"):
            train_tiny(run, checkpoint_every=2)
    train_tiny(RunFolder.open(run.path), checkpoint_every=2)
    whole = new_run(tmp_path / "whole")
    train_tiny(whole)
    assert without_times(run.read_metrics()) == without_times(whole.read_metrics())


def test_a_save_behind_the_training_that_fails_ends_the_run_with_its_message(run, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sortyard.training.pieces.save_file", full)
    with pytest.raises(InputError, match="step-00000002: the checkpoint cannot be written: the disk is full"):
        train_tiny(run, checkpoint_every=2, async_checkpoints=True)
    (error,) = events(run, "error")
    assert (error["step"], "the disk is full" in error["message"]) == (4, True)
    monkeypatch.undo()
    assert train_tiny(run, checkpoint_every=2, async_checkpoints=True).state.step == 8


def test_tensorboard_files_are_written(run):
    pytest.importorskip("tensorboard")
    train_tiny(run, tensorboard=True)
    assert list(run.tensorboard.glob("events*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_said(run):
    with pytest.raises(InputError, match="sees no GPU"):
        train_tiny(run, device="cuda")
