"""What a task's examples say of two arms: the same examples, drawn again and again, for both."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sortyard.evaluation.metrics import METRICS, Values
from sortyard.reports.figures import Table
from sortyard.runs.json_lines import read_lines

Json = dict[str, Any]
LEVEL, RESAMPLES = 0.95, 500


@dataclass(frozen=True)
class Answers:
    """One run's predictions.

    Attributes:
        predictions: Class numbers, or a regression's values [N].
        labels: Likewise [N].
    """

    predictions: Values
    labels: Values


@dataclass(frozen=True)
class ResampledGain:
    """How much better one arm scores than another, and how far that depends on the examples drawn.

    Attributes:
        mean: On the examples as they are, mean over the seeds both have.
        low: Lower end of the 95 % percentile interval over resampled examples.
        high: Upper end.
        seeds: Number of seeds.
        examples: Number of examples.
    """

    mean: float
    low: float
    high: float
    seeds: int
    examples: int

    def record(self) -> Json:
        """Return it as JSON values."""
        return asdict(self)


def read_answers(path: Path, *, label_names: Sequence[str]) -> Answers:
    """Read NAME-predictions.jsonl of a fine-tuned run.

    Args:
        path: The file.
        label_names: The classes in their order; empty for a regression.
    """
    numbers = {name: number for number, name in enumerate(label_names)}
    rows = [(row["prediction"], row["label"]) for row in read_lines(path)]
    predictions, labels = (np.asarray([numbers.get(row[i], row[i]) for row in rows]) for i in (0, 1))
    return Answers(predictions, labels)


def resampled_gain(
    ours: Mapping[str, Answers], other: Mapping[str, Answers], *, metric: str, seed: int = 0
) -> ResampledGain | None:
    """Bound a difference in score by drawing the examples with replacement, the same ones for both arms and all seeds.

    This says how far other examples might change the difference; the interval over seeds says it of other trainings.

    Args:
        ours: Our answers by seed.
        other: The other arm's.
        metric: A key of `METRICS`.
        seed: Of the drawing.

    Returns:
        The gain; None where no seed has both, or the examples are not the same.

    Source: Efron (1979), paired as in Berg-Kirkpatrick et al. (2012).
    """
    seeds = [seed_ for seed_ in ours if seed_ in other]
    if not seeds or any(not np.array_equal(ours[s].labels, other[s].labels) for s in seeds):
        return None
    count, function, generator = len(ours[seeds[0]].labels), METRICS[metric], np.random.default_rng(seed)

    def gain(places: Any) -> float:
        sides = ((ours[s].predictions, other[s].predictions, ours[s].labels) for s in seeds)
        return float(np.mean([function(a[places], t[places]) - function(b[places], t[places]) for a, b, t in sides]))

    drawn = [gain(generator.integers(count, size=count)) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return ResampledGain(gain(np.arange(count)), float(low), float(high), len(seeds), count)


def examples_table(gains: Mapping[str, Json], *, first: str) -> Table:
    """Write down how much better the first arm scores than each other, with intervals over examples."""
    rows = tuple(
        (
            arm,
            f"{100 * gain['mean']:+.2f}",
            f"{100 * gain['low']:+.2f} to {100 * gain['high']:+.2f}",
            str(gain["seeds"]),
            f"{gain['examples']:,}",
        )
        for arm, gain in gains.items()
    )
    header = ("against", "points", "95 % interval over examples", "seeds", "examples")
    return Table(f"On the task, {first} less each other arm, paired bootstrap", header, rows)
