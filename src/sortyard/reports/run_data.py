"""A run folder read into plain values; whatever a run did not write is empty."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sortyard.errors import InputError
from sortyard.evaluation.cost import ParameterCounts
from sortyard.runs.folder import RunFolder
from sortyard.runs.json_lines import read_lines

Record = dict[str, Any]
SUB_RUNS = ("pretrain", "finetune")
ROUTING = "routing.json"  # beside the evaluations: `sortyard eval --routing`


@dataclass(frozen=True)
class Evaluation:
    """One file of a run's `eval` folder, with its predictions."""

    name: str
    result: Record
    predictions: tuple[Record, ...]

    @property
    def is_later(self) -> bool:
        """Whether `sortyard eval` wrote it, of whatever data, and not the end of the run itself."""
        return self.name.endswith("-again")


@dataclass(frozen=True)
class Phase:
    """One run folder."""

    path: Path
    verb: str
    train: tuple[Record, ...]
    evals: tuple[Record, ...]
    events: tuple[Record, ...]
    environment: Record
    recipe: str
    routing_steps: NDArray[np.int64]
    routing_loads: NDArray[np.float32]
    evaluations: tuple[Evaluation, ...]
    routing: Record
    inspection: Record
    architecture: str
    parameters: ParameterCounts | None

    @property
    def is_finetuning(self) -> bool:
        """Whether the run trained a task's head rather than an encoder or language model."""
        if self.verb:
            return self.verb == "finetune"
        has_scores = any("metrics" in evaluation.result for evaluation in self.evaluations)
        return has_scores or self.architecture.endswith("ForSequenceClassification")

    @property
    def is_adapting(self) -> bool:
        """Whether the run let a model settle that was there before."""
        return self.verb == "adapt"

    @property
    def settings(self) -> Record:
        """The resolved recipe as values; empty where there is none.

        Raises:
            InputError: it is not YAML.
        """
        try:
            content = yaml.safe_load(self.recipe)
        except yaml.YAMLError as error:
            raise InputError(f"{self.path / 'resolved.yaml'}: is not YAML ({error})") from error
        return content if isinstance(content, dict) else {}

    @property
    def last(self) -> Record:
        """The last training record, or an empty one."""
        return self.train[-1] if self.train else {}


@dataclass(frozen=True)
class RunData:
    """A run, or a folder with the two runs of a demo and their comparison."""

    path: Path
    phases: tuple[Phase, ...]
    comparison: Record

    @property
    def final(self) -> Phase:
        """The phase whose model the run hands over."""
        return self.phases[-1]


def read_run(path: Path) -> RunData:
    """Read a run folder, or a folder that holds `pretrain/` and `finetune/`.

    Raises:
        InputError: the folder does not exist, holds no run, or one of its files is damaged.
    """
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder; give a run's folder")
    folders = [path] if _is_run(path) else [path / name for name in SUB_RUNS if _is_run(path / name)]
    if not folders:
        raise InputError(f"{path}: is no run's folder, it holds neither metrics.jsonl nor resolved.yaml nor eval/")
    return RunData(
        path=path,
        phases=tuple(_read_phase(folder) for folder in folders),
        comparison=read_json(path / "comparison.json"),
    )


def _is_run(path: Path) -> bool:
    run = RunFolder(path)
    return run.resolved.is_file() or run.metrics.is_file() or run.eval.is_dir()


def _read_phase(path: Path) -> Phase:
    run = RunFolder(path)
    steps, loads = run.read_routing()
    architecture, parameters = read_model(run.model)
    return Phase(
        path=path,
        verb=str(read_json(path / "job.json").get("verb", "")),
        train=_latest_by_step(run.read_metrics("train")),
        evals=_latest_by_step(run.read_metrics("eval")),
        events=tuple(run.read_events()),
        environment=read_json(run.environment),
        recipe=run.resolved.read_text(encoding="utf-8") if run.resolved.is_file() else "",
        routing_steps=steps,
        routing_loads=loads,
        evaluations=_read_evaluations(run.eval),
        routing=read_json(run.eval / ROUTING),
        inspection=read_json(path / "inspection.json"),
        architecture=architecture,
        parameters=parameters,
    )


def read_model(folder: Path) -> tuple[str, ParameterCounts | None]:
    """Return the class that was saved in a model folder, and its size; "" and None where they are not known."""
    config = read_json(folder / "config.json")
    return str((config.get("architectures") or [""])[0]), _count_parameters(folder, config=config)


def _latest_by_step(records: list[Record]) -> tuple[Record, ...]:
    """Order records by step; of a step that a resumed run took twice, keep the later record."""
    latest = {record["step"]: record for record in records}
    return tuple(latest[step] for step in sorted(latest))


def _read_evaluations(folder: Path) -> tuple[Evaluation, ...]:
    """All but the routing's, those of the run's own end first."""
    files = sorted(file for file in folder.glob("*.json") if file.name != ROUTING) if folder.is_dir() else []
    found = (
        Evaluation(
            name=file.stem,
            result=read_json(file),
            predictions=tuple(read_lines(folder / f"{file.stem}-predictions.jsonl")),
        )
        for file in files
    )
    return tuple(sorted(found, key=lambda evaluation: evaluation.is_later))


def read_json(path: Path) -> Record:
    """Read a file of one JSON object; empty where there is none.

    Raises:
        InputError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); write it again or remove it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold one JSON object; write it again or remove it")
    return content


def _count_parameters(folder: Path, *, config: Record) -> ParameterCounts | None:
    """Count from the shapes in the weights' header, or for our own models from their configuration."""
    weights = folder / "model.safetensors"
    if config.get("model_type") == "sortyard":
        return _count_own(folder, architecture=(config.get("architectures") or [""])[0])
    if not weights.is_file():
        return None
    from safetensors import safe_open

    with safe_open(weights, framework="numpy") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - no mapping
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    total = sum(sizes.values())
    return ParameterCounts(
        total=total, active=total, embedding=sum(size for name, size in sizes.items() if "embeddings.weight" in name)
    )


def _count_own(folder: Path, *, architecture: str) -> ParameterCounts | None:
    import torch

    from sortyard.evaluation.cost import parameter_counts
    from sortyard.model.configuration import SortyardConfig
    from sortyard.model.factory import HEADS
    from sortyard.model.modeling import SortyardModel, SortyardPreTrainedModel

    kinds: tuple[type[SortyardPreTrainedModel], ...] = (SortyardModel, *HEADS.values())
    kind = next((kind for kind in kinds if kind.__name__ == architecture), None)
    if kind is None:
        return None
    with torch.device("meta"):
        return parameter_counts(kind(SortyardConfig.from_pretrained(folder)))
