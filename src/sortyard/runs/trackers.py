"""Where metrics go besides metrics.jsonl: TensorBoard's files, and trackers that a person has installed."""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from sortyard.errors import InputError, first_line
from sortyard.runs.folder import RunFolder


class TensorBoard:
    """Writes metrics by names such as "train/loss" into TensorBoard's files.

    Args:
        run: the run's folder.
        first_step: finished steps at the start; what the files hold beyond them is hidden.
    """

    def __init__(self, run: RunFolder, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer: Any = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write them."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


class Tracker:
    """Hands metrics to a package with the calls init, log and finish; one that fails is left out from then on.

    Nothing goes over a network unless the environment asks for it: W&B works offline where WANDB_MODE is not set,
    trackio locally where no TRACKIO_SPACE_ID is.

    Args:
        name: of the package.
        run: the run's folder.
        warn: told about a failure.
    """

    def __init__(self, name: str, run: RunFolder, *, warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._module: Any = _imported(name)
        project = os.environ.get(f"{name.upper()}_PROJECT", "sortyard")
        settings: dict[str, Any] = {"project": project, "name": run.path.name}
        settings["config"] = yaml.safe_load(run.resolved.read_text(encoding="utf-8"))
        if name == "wandb":
            settings |= {"dir": str(run.path), "mode": os.environ.get("WANDB_MODE", "offline")}
        else:
            settings |= {"resume": "allow"}
            os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        self._call("init", **settings)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hand them over."""
        self._call("log", dict(values), step=step)

    def close(self) -> None:
        """Let it finish."""
        self._call("finish")

    def _call(self, what: str, *args: Any, **kwargs: Any) -> None:
        if self._module is None:
            return
        try:
            getattr(self._module, what)(*args, **kwargs)
        except Exception as error:  # of any kind: a tracker must not cost the run
            self._module = None
            self._warn(f"{self._name} failed at {what} and gets no more metrics ({first_line(error)})")


Writer = TensorBoard | Tracker


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed, before any work is done.

    Raises:
        InputError: naming the package.
    """
    for name in names:
        _imported(name)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"loop.trackers names {name}, which cannot be imported here ({first_line(error)}): `pip install {name}`, "
            "or take it out; metrics.jsonl and TensorBoard need neither"
        ) from error
