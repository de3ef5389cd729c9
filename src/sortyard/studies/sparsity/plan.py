"""What `study sparsity` measures: its cells, in the order of their importance."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sortyard.studies.sparsity.cores import DENSE, SELECTIONS, TREE

SETTING, AS_IS, ADAPTED, TASK = "setting", "as-is", "adapted", "task"
MEASURES = {
    AS_IS: "held-out masked-LM loss, weights unchanged",
    ADAPTED: "held-out masked-LM loss after fine-tuning",
    TASK: "held-out accuracy after fine-tuning",
}
# Where the seed's knee and the aim lie comes first, so that a run that ends early has it.
_FIRST = (0.95, 0.7, 0.9, 0.8)


class Cell(NamedTuple):
    """One measurement; sparsity is the one asked for, 0 for dense attention."""

    measure: str
    length: int
    selection: str
    sparsity: float
    seed: int = 0

    @property
    def key(self) -> str:
        """Its name in the result."""
        return f"{self.measure}/{self.length}/{self.selection}/{self.sparsity:g}/seed{self.seed}"


@dataclass(frozen=True)
class SparsityPlan:
    """The study.

    Attributes:
        model: Folder or hub name of a sortyard masked language model.
        texts: Sources of text.
        task_data: A table with text and labels; empty = no task.
        label_column: The column that holds the labels.
        labels: Labels that are told apart, at most.
        passages: Of one label at a length, at most.
        lengths: Tokens of the passages.
        task_lengths: Tokens of the labelled passages.
        sparsities: Shares of pairs to leave out.
        selections: Keys of `SELECTIONS`.
        adapt_steps: Steps of fine-tuning on text; 0 = none.
        task_steps: Steps of fine-tuning on the task.
        seeds: Seeds of the cells that are fine-tuned.
        minutes: Time for the whole; infinite = no end.
        jobs: Processes at once.
        threads: Threads of each.
        device: Where models are trained and scored.
    """

    model: str
    texts: tuple[str, ...]
    task_data: str
    label_column: str
    labels: int
    passages: int
    lengths: tuple[int, ...]
    task_lengths: tuple[int, ...]
    sparsities: tuple[float, ...]
    selections: tuple[str, ...]
    adapt_steps: int
    task_steps: int
    seeds: int
    minutes: float
    jobs: int
    threads: int
    device: str

    def command(self) -> str:
        """Return the command line that asks for this plan, without folders of this machine."""
        words = [Path(self.model).name, *(f"--data {Path(text).name}" for text in self.texts)]
        words += [f"--lengths {_listed(self.lengths)}", f"--sparsities {_listed(self.sparsities)}"]
        words += [f"--selections {','.join(self.selections)}"] if self.selections != tuple(SELECTIONS) else []
        words += [f"--adapt-steps {self.adapt_steps}", f"--seeds {self.seeds}"]
        if self.task_data:
            words += [f"--task-data {Path(self.task_data).name} --label-column {self.label_column}"]
            words += [f"--text-length {_listed(self.task_lengths)} --task-steps {self.task_steps}"]
            words += [f"--labels {self.labels} --passages {self.passages}"]
        words += [f"--minutes {self.minutes:g}"] if self.minutes != float("inf") else []
        words += [f"--device {self.device}"] if self.device != "cpu" else []
        return " ".join(["sortyard study sparsity", *words, f"--jobs {self.jobs}"])

    def settings_wanted(self) -> list[Cell]:
        """The settings to find, before anything is measured."""
        lengths = sorted({*self.lengths, *(self.task_lengths if self.task_data else ())})
        return [Cell(SETTING, length, *place) for length in lengths for place in self._places() if place[0] != DENSE]

    def cells(self) -> list[Cell]:
        """All measurements: the cheap ones first; then seed by seed, so that what is there is whole pairs."""
        found = [Cell(AS_IS, length, *place) for length in self.lengths for place in self._places()]
        for seed in range(self.seeds):
            for length in self.lengths if self.adapt_steps else ():
                found += [Cell(ADAPTED, length, *place, seed) for place in self._places()]
            for length in self.task_lengths if self.task_data else ():
                found += [Cell(TASK, length, *place, seed) for place in self._places()]
        return sorted(found, key=lambda cell: (cell.measure != AS_IS, cell.seed, self._rank(cell)))

    def _places(self) -> list[tuple[str, float]]:
        return [(DENSE, 0.0), *((name, share) for name in self.selections for share in self.sparsities)]

    def _rank(self, cell: Cell) -> int:
        """Dense first; then by the product of how early the selection and the sparsity are wanted."""
        if cell.selection == DENSE:
            return 0
        order = sorted(self.sparsities, key=lambda share: (_FIRST.index(share) if share in _FIRST else 9, share))
        selection = [TREE, *(name for name in SELECTIONS if name != TREE)].index(cell.selection)
        return (1 + selection) * (1 + order.index(cell.sparsity))


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
