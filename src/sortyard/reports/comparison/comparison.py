"""What several runs have in common, where they differ, and whether their scores may be set side by side."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sortyard.errors import InputError
from sortyard.evaluation.metrics import METRICS, Values
from sortyard.evaluation.paired import PairedDifference, paired_bootstrap
from sortyard.reports.run_data import Evaluation, Phase, Record, read_run

MISSING = "-"
_COURSE = {"start", "resume", "stop", "finish"}  # the events that say where a run stands


@dataclass(frozen=True)
class ComparedRun:
    """One run.

    Attributes:
        name: the shortest end of its path that no other run has.
        phase: what it recorded; of a demo the fine-tuning.
        tokenizer: digest of its tokenizer; empty where it has no model yet.
    """

    name: str
    phase: Phase
    tokenizer: str

    @property
    def is_finished(self) -> bool:
        """Whether it ended by itself."""
        course = [event["event"] for event in self.phase.events if event.get("event") in _COURSE]
        return course[-1:] == ["finish"]

    def record(self) -> Record:
        """Return its figures as JSON values; None where it did not record one."""
        phase, last = self.phase, self.phase.last
        seconds, tokens = last.get("seconds"), last.get("tokens")
        held_out = [(row["loss"], row["step"]) for row in phase.evals if row.get("loss") is not None]
        best = min(held_out, default=(None, None))
        parameters = phase.parameters
        return {
            "run": self.name, "folder": str(phase.path), "kind": _kind(phase), "finished": self.is_finished,
            "seed": phase.environment.get("seed"), "data_fingerprint": phase.environment.get("data_fingerprint"),
            "tokenizer": self.tokenizer or None,
            "parameters": parameters.total if parameters else None,
            "active_parameters": parameters.active if parameters else None,
            "steps": last.get("step"), "tokens": tokens,
            "train_loss": _late_loss(phase.train),
            "held_out_loss": held_out[-1][0] if held_out else None,
            "best_held_out_loss": best[0], "best_at_step": best[1],
            "tokens_per_second": tokens / seconds if tokens and seconds else None,
            "memory_bytes": max((row.get("memory_bytes") or 0 for row in phase.train), default=0) or None,
            "seconds": seconds, "sparsity": last.get("sparsity"), "utilisation": last.get("utilisation"),
            "evaluations": [_scores(evaluation) for evaluation in _scored(phase)],
        }  # fmt: skip


@dataclass(frozen=True)
class Paired:
    """A run against the first one, on the same examples."""

    evaluation: str
    metric: str
    first: str
    second: str
    difference: PairedDifference

    def record(self) -> Record:
        """Return the fields as JSON values."""
        names = {"evaluation": self.evaluation, "metric": self.metric, "first": self.first, "second": self.second}
        return names | self.difference.record()


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: in the order given; the first is what the others are set against.
        differing: by key of the recipe, every run's value; only keys that differ.
        paired: differences on the same examples.
        warnings: why figures may not be comparable.
    """

    runs: tuple[ComparedRun, ...]
    differing: dict[str, tuple[str, ...]]
    paired: tuple[Paired, ...]
    warnings: tuple[str, ...]

    def record(self) -> Record:
        """Return everything as JSON values."""
        names = [run.name for run in self.runs]
        return {
            "runs": [run.record() for run in self.runs],
            "differing": {key: dict(zip(names, values, strict=True)) for key, values in self.differing.items()},
            "paired": [one.record() for one in self.paired],
            "warnings": list(self.warnings),
        }


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read runs and set them side by side.

    Args:
        folders: two or more runs; of a demo's folder the fine-tuning is taken.

    Raises:
        InputError: fewer than two, one twice, or one that is no run or is damaged; the message names it.
    """
    places = [folder.resolve() for folder in folders]
    if len(places) < 2:
        raise InputError(f"RUN...: comparing needs two runs or more, got {len(places)}")
    twice = next((folder for i, folder in enumerate(folders) if places[i] in places[:i]), None)
    if twice is not None:
        raise InputError(f"{twice}: is given twice; give every run once")
    phases = [read_run(folder).final for folder in folders]
    runs = tuple(
        ComparedRun(name, phase, _tokenizer_digest(phase.path / "model"))
        for name, phase in zip(short_names(places), phases, strict=True)
    )
    paired, unpaired = _pair_all(runs)
    return Comparison(
        runs=runs,
        differing=differing_keys([phase.settings for phase in phases]),
        paired=tuple(paired),
        warnings=(*_warnings(runs), *unpaired),
    )


def short_names(places: Sequence[Path]) -> list[str]:
    """Name each folder by as much of its path's end as tells it from the others."""
    longest = max(len(place.parts) for place in places)
    for length in range(1, longest + 1):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def differing_keys(recipes: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """Return the dotted keys whose values are not the same in all recipes, with every recipe's value as text."""
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: tuple(values.get(key, MISSING) for values in flat) for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flat(values: Record, *, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)


def _kind(phase: Phase) -> str:
    return phase.verb or ("finetune" if phase.is_finetuning else "pretrain")


def _late_loss(train: Sequence[Record]) -> float | None:
    """Return the mean over the last tenth of the records: the very last one may be of a single step."""
    losses = [loss for row in train if (loss := row.get("task_loss", row.get("loss"))) is not None]
    late = losses[-max(1, len(losses) // 10) :]
    return sum(late) / len(late) if late else None


def _tokenizer_digest(model: Path) -> str:
    file = model / "tokenizer.json"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""


def _scored(phase: Phase) -> list[Evaluation]:
    return [one for one in phase.evaluations if "metrics" in one.result]


def _scores(evaluation: Evaluation) -> Record:
    result = evaluation.result
    kept = ("task", "num_examples", "metrics", "main_metric", "interval")
    return {"name": evaluation.name} | {name: result.get(name) for name in kept}


def _warnings(runs: Sequence[ComparedRun]) -> Iterable[str]:
    """Say in words what makes figures of these runs another thing."""
    environments = [run.phase.environment for run in runs]
    checks = (
        ("kind of run", [_kind(run.phase) for run in runs], "their losses measure different things"),
        ("data", [env.get("data_fingerprint") for env in environments], "losses and scores are of different data"),
        ("tokenizer", [run.tokenizer or None for run in runs], "a loss per token is not comparable"),
        ("seed", [env.get("seed") for env in environments], "part of a difference is the seed's"),
        ("machine", [_machine(env) for env in environments], "seconds and throughput are not comparable"),
        ("version of sortyard or torch", [_versions(env) for env in environments], "compare seconds with care"),
    )
    for what, values, so in checks:
        known = [(run.name, value) for run, value in zip(runs, values, strict=True) if value not in (None, "")]
        if len({value for _, value in known}) > 1:
            shown = ", ".join(f"{name}: {value}" for name, value in known)
            yield f"not the same {what}, so {so} ({shown})"
    for run in runs:
        if not run.is_finished:
            yield f"{run.name} has not finished; it stands at step {run.phase.last.get('step', 0):,}"


def _machine(environment: Record) -> str:
    machine = environment.get("machine") or {}
    return ", ".join(str(machine[key]) for key in ("cpu", "cores", "device") if machine.get(key))


def _versions(environment: Record) -> str:
    versions = environment.get("versions") or {}
    return " ".join(f"{name} {versions[name]}" for name in ("sortyard", "torch") if versions.get(name))


def _pair_all(runs: Sequence[ComparedRun]) -> tuple[list[Paired], list[str]]:
    """Set every run against the first on the evaluations of the same name, and say where that cannot be done."""
    first, found, unpaired = runs[0], [], []
    known = {one.name: one for one in _scored(first.phase)}
    for run in runs[1:]:
        for evaluation in _scored(run.phase):
            base = known.get(evaluation.name)
            if base is None:
                continue
            difference = _paired(base, evaluation)
            metric = str(base.result["main_metric"])
            if difference is not None:
                found.append(Paired(evaluation.name, metric, first.name, run.name, difference))
            else:
                unpaired.append(
                    f"{first.name} and {run.name} were not scored on the same examples of {evaluation.name}, so their "
                    "difference has no paired interval"
                )
    return found, unpaired


def _paired(first: Evaluation, second: Evaluation) -> PairedDifference | None:
    """Return the difference in the main metric; None where examples or metric are not the same."""
    metric = first.result["main_metric"]
    asked = [
        [(row.get("text"), row.get("text_pair"), row.get("label")) for row in one.predictions]
        for one in (first, second)
    ]
    if metric not in METRICS or metric != second.result["main_metric"] or not asked[0] or asked[0] != asked[1]:
        return None
    names = first.result.get("label_names") or ()
    labels, one, two = (
        _numbers([row[key] for row in evaluation.predictions], names=names)
        for evaluation, key in ((first, "label"), (first, "prediction"), (second, "prediction"))
    )
    return paired_bootstrap(metric, first=one, second=two, labels=labels)


def _numbers(values: Sequence[Any], *, names: Sequence[str]) -> Values:
    """Turn class names into class numbers, in the order the metric knows them; leave a regression's values."""
    if values and isinstance(values[0], str):
        order = {name: i for i, name in enumerate(dict.fromkeys([*names, *values]))}
        return np.asarray([order[value] for value in values])
    return np.asarray(values)
