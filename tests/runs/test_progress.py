import io

from rich.console import Console

from sortyard.runs.progress import PlainProgress, RichProgress, make_progress, summary
from tests.training.tiny import TinySource, new_run, train_tiny

METRICS = {"loss": 4.1234, "tokens_per_second": 9800.0, "memory_bytes": 1.1e9, "experts_used": 7, "sparsity": 0.57}


class Recorded:
    """A display that remembers what it was told."""

    def __init__(self):
        self.calls = []

    def start(self, *, total, done):
        self.calls.append(("start", total, done))

    def update(self, metrics):
        self.calls.append(("update", metrics["step"]))

    def message(self, text):
        self.calls.append(("message", text))

    def stop(self):
        self.calls.append(("stop",))


def test_summary_leaves_out_what_is_not_there():
    assert summary(METRICS) == "loss 4.123  9,800 tok/s  1,100 MB  experts 7 used  sparsity 57%"
    assert summary({"loss": None, "sparsity": 0.0}) == "sparsity 0%"


def test_lines_outside_a_terminal():
    console = Console(file=io.StringIO(), width=200)
    progress = make_progress(console, label="pretrain")
    assert isinstance(progress, PlainProgress)
    progress.start(total=3, done=1)
    progress.update({"step": 2, **METRICS})
    progress.update({"step": 3, **METRICS})
    progress.message("[done]")
    progress.stop()
    first, second = console.file.getvalue().splitlines()
    assert first.startswith("pretrain  3/3  loss 4.123")
    assert second == "[done]"


def test_bar_in_a_terminal():
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    progress = make_progress(console, label="pretrain")
    assert isinstance(progress, RichProgress)
    progress.start(total=40, done=20)
    progress.update({"step": 21, **METRICS})
    progress.message("a word")
    progress.stop()
    shown = console.file.getvalue()
    assert "21/40" in shown
    assert "a word" in shown


def test_the_bar_begins_at_the_restored_step_and_stops_on_errors(tmp_path):
    run, source, display = new_run(tmp_path / "run"), TinySource(), Recorded()
    source.fail_at = 5
    try:
        train_tiny(run, source=source, checkpoint_every=2, progress=display)
    except RuntimeError:
        assert display.calls[-1] == ("stop",)
    again = Recorded()
    train_tiny(run, checkpoint_every=2, progress=again)
    assert again.calls[:2] == [("start", 8, 4), ("update", 5)]
