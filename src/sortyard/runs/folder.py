"""The folder of one run: the only place that knows the names of its files.

Nothing here imports torch, so reports and the command line open a run quickly.
"""

import io
import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from sortyard.durable import replace_bytes, sync
from sortyard.errors import InputError
from sortyard.runs.json_lines import append_line, keep_lines, plain, read_lines

UPCYCLING = "upcycling.json"  # beside a model that `sortyard upcycle` made
MOST_ROUTING = 2000  # records; those of 24 layers of 64 experts take 12 MB, which every checkpoint writes anew


class RunFolder:
    """Paths and records of one run.

    Use `create` for a new run and `open` for one that exists.
    """

    def __init__(self, path: Path):
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.resolved = path / "resolved.yaml"
        self.accepted = path / "accepted.json"
        self.environment = path / "env.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.routing = path / "routing.npz"
        self.report = path / "report.html"
        self.card = path / "README.md"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.eval = path / "eval"
        self.processes = path / "processes"
        self._routing_steps: list[int] = []
        self._routing_loads: list[npt.NDArray[np.float32]] = []

    @classmethod
    def create(cls, path: Path | str, *, recipe: str, resolved: str, environment: Mapping[str, Any]) -> Self:
        """Start a run in a new or empty folder.

        Args:
            path: the run's folder; missing parents are created.
            recipe: text of the recipe as the user gave it.
            resolved: YAML text of every value, defaults and overrides included.
            environment: what `environment.describe_environment` returned.

        Raises:
            InputError: the folder holds something already, or cannot be written.
        """
        run = cls(Path(path))
        if run.path.is_file() or (run.path.is_dir() and any(run.path.iterdir())):
            raise InputError(
                f"{run.path} exists and is not empty: choose another folder for the new run, "
                f"or continue the run that is there with `sortyard resume {run.path}`"
            )
        try:
            run.checkpoints.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{run.path}: cannot be written ({error.strerror}); choose another folder") from error
        try:
            run.recipe.write_text(recipe, encoding="utf-8")
            run.environment.write_text(json.dumps(plain(environment), indent=2) + "\n", encoding="utf-8")
            run.accept_recipe(resolved)
        except OSError as error:
            shutil.rmtree(run.path, ignore_errors=True)  # it was new or empty: half a run would only be in the way
            raise InputError(f"{run.path}: cannot be written ({error.strerror}); choose another folder") from error
        return run

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a run that exists.

        Raises:
            InputError: the folder is missing or is not that of a run.
        """
        run = cls(Path(path))
        if not run.resolved.is_file():
            raise InputError(f"{run.path} is not a run's folder: it has no {run.resolved.name}")
        return run

    def accepted_recipes(self) -> list[str]:
        """Texts of resolved.yaml that this run was trained with, oldest first; none where an early version made it."""
        if not self.accepted.is_file():
            return []
        try:
            texts = json.loads(self.accepted.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.accepted}: is damaged ({error}); restore it, or remove it") from error
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{self.accepted}: must be a list of texts; restore it, or remove it")
        return texts

    def accept_recipe(self, resolved: str) -> None:
        """Make a recipe the one that the run goes on with, and remember it beside those before."""
        accepted = [text for text in self.accepted_recipes() if text != resolved]
        replace_bytes(self.accepted, (json.dumps([*accepted, resolved], indent=1) + "\n").encode())
        replace_bytes(self.resolved, resolved.encode())  # last: a folder that has it is a run

    def append_metric(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; kind is "train" or "eval", step the number of finished steps."""
        append_line(self.metrics, {"kind": kind, "step": step, **values})

    def append_event(self, event: str, *, step: int | None = None, **details: Any) -> None:
        """Add a line to events.jsonl.

        Args:
            event: "start", "resume", "recipe", "checkpoint", "evaluation", "warning", "error", "stop" or "finish".
            step: finished steps when it happened; None outside training.
            **details: JSON values.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        append_line(self.events, {"time": now, "event": event, "step": step, **details})

    def append_routing(self, step: int, loads: npt.NDArray[np.float32]) -> None:
        """Remember the experts' shares of the routed copies since the last record; `sync` writes them.

        Of long runs half of the records are kept, evenly spread over the steps, whenever there are too many.

        Args:
            step: finished steps.
            loads: [layers, experts], each row adding up to 1.
        """
        self._routing_steps.append(step)
        self._routing_loads.append(loads.astype(np.float32))
        if len(self._routing_steps) > MOST_ROUTING:
            spread = np.linspace(self._routing_steps[0], step, MOST_ROUTING // 2)
            kept = sorted({int(place) for place in np.searchsorted(self._routing_steps, spread)})
            self._routing_steps = [self._routing_steps[place] for place in kept]
            self._routing_loads = [self._routing_loads[place] for place in kept]

    def read_metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl in the order of writing; of one kind, or all."""
        return [record for record in read_lines(self.metrics) if kind in (None, record.get("kind"))]

    def read_events(self) -> list[dict[str, Any]]:
        """Lines of events.jsonl in the order of writing."""
        return read_lines(self.events)

    def finishes(self) -> list[int]:
        """The steps at which the run finished; several where it was given more to do afterwards."""
        return [int(event["step"]) for event in self.read_events() if event.get("event") == "finish"]

    def read_routing(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Steps [S] and loads [S, layers, experts] of routing.npz; S is 0 where there is no such file."""
        if not self.routing.is_file():
            return np.zeros(0, dtype=np.int64), np.zeros((0, 0, 0), dtype=np.float32)
        try:
            with self.routing.open("rb") as file, np.load(file, allow_pickle=False) as content:
                return content["steps"], content["loads"]
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"{self.routing}: is damaged; remove it to go on without the routing so far") from error

    def sync(self) -> None:
        """Make every record so far durable; done before each checkpoint, so that none is newer than the records."""
        if self._routing_steps:
            content = io.BytesIO()
            np.savez_compressed(
                content, steps=np.array(self._routing_steps, dtype=np.int64), loads=np.stack(self._routing_loads)
            )
            replace_bytes(self.routing, content.getvalue())
        for path in (self.metrics, self.events):
            if path.exists():
                sync(path)

    def cut_after(self, step: int) -> None:
        """Forget metrics and routing after a step, which a resumed run writes anew; events stay, as they happened."""

        def is_past(record: dict[str, Any]) -> bool:
            if not isinstance(record.get("step"), int):
                raise InputError(f"{self.metrics}: a line has no step: {json.dumps(record)[:80]}; remove that line")
            return bool(record["step"] <= step)

        keep_lines(self.metrics, is_past)
        steps, loads = self.read_routing()
        kept = steps <= step
        self._routing_steps, self._routing_loads = steps[kept].tolist(), list(loads[kept])
        if not self._routing_steps:
            self.routing.unlink(missing_ok=True)
