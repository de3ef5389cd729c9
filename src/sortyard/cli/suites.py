"""`sortyard eval --suite`: options of the suites, and how they are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sortyard.cli.bench_values import read_lengths, read_words
from sortyard.cli.output import Output
from sortyard.errors import InputError

SUITES = ("glue", "long")
PANEL = "Suites"

Suite = Annotated[
    str | None,
    typer.Option(
        "--suite",
        help="Fine-tune on a set of tasks and score them: glue, or long (documents at several lengths).",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks", help="Only these tasks, such as sst2,rte.", show_default=False, rich_help_panel=PANEL
    ),
]  # fmt: skip
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="glue: one setting for all tasks (the usual), or each task its own.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds", min=1, help="Runs of a task; glue 5, long 1.", show_default=False, rich_help_panel=PANEL
    ),
]  # fmt: skip
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", min=1, help="Runs at the same time, one core each; 2.", show_default=False, rich_help_panel=PANEL
    ),
]
SuiteOut = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Folder of the runs; runs/SUITE-MODEL.", show_default=False, rich_help_panel=PANEL
    ),
]  # fmt: skip
KeepModels = Annotated[
    bool, typer.Option("--keep-models", help="Keep the weights of every run.", rich_help_panel=PANEL)
]
Lengths = Annotated[
    str | None,
    typer.Option(
        "--lengths",
        help="long: tokens read of a document; 512,1k,2k,4k.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
TrainExamples = Annotated[
    int | None,
    typer.Option(
        "--train-examples", min=8, help="long: documents to learn from; 2000.", show_default=False,
        rich_help_panel=PANEL,
    ),
]  # fmt: skip
TestExamples = Annotated[
    int | None,
    typer.Option(
        "--test-examples", min=1, help="long: documents to score; 1000.", show_default=False, rich_help_panel=PANEL
    ),
]


@dataclass(frozen=True)
class SuiteWords:
    """The suites' options as they were given; None where one was not."""

    suite: str | None
    tasks: str | None
    protocol: str | None
    seeds: int | None
    jobs: int | None
    out: Path | None
    keep_models: bool
    lengths: str | None
    train_examples: int | None
    test_examples: int | None
    changes: tuple[str, ...]

    def refuse_without_suite(self) -> None:
        """Refuse options that mean nothing to other evaluations.

        Raises:
            InputError: One is given.
        """
        for name, value in vars(self).items():
            if value not in (None, False, ()):
                option = value[0] if name == "changes" else f"--{name.replace('_', '-')} {value}"
                raise InputError(f"{option}: is only for --suite {' or '.join(SUITES)}")

    def refuse(self, *names: str) -> None:
        """Refuse options of the other suite.

        Raises:
            InputError: One is given.
        """
        for name in names:
            if getattr(self, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: is not for --suite {self.suite}")


def run_suite(run: Path, *, data: Sequence[str], words: SuiteWords, output: Output) -> None:
    """Run the suite that was asked for, and print its tables."""
    if words.suite not in SUITES:
        raise InputError(f"--suite {words.suite}: is none of {', '.join(SUITES)}")
    found = _glue(run, data, words, output) if words.suite == "glue" else _long(run, data, words, output)
    from sortyard.studies.suites.pages import suite_text

    output.result(found, text=suite_text(found))


def _glue(run: Path, data: Sequence[str], words: SuiteWords, output: Output) -> dict[str, Any]:
    words.refuse("lengths", "train_examples", "test_examples")
    if len(data) != 1:
        raise InputError("--suite glue needs one --data: a folder with rte_train.parquet and so on, or hub")
    protocol = words.protocol or "one"
    if protocol not in ("one", "each"):
        raise InputError(f"--protocol {protocol}: expected one (setting for all tasks) or each (task its own)")
    from sortyard.data.glue import TASKS
    from sortyard.studies.suites.glue import GluePlan, run_glue

    tasks = tuple(TASKS) if words.tasks is None else read_words("--tasks", words.tasks, known=tuple(TASKS))
    plan = GluePlan(
        run, data[0], tasks=tuple(tasks), protocol="one" if protocol == "one" else "each", changes=words.changes,
        **_shared(words),
    )  # fmt: skip
    return run_glue(plan, display=output.display())


def _long(run: Path, data: Sequence[str], words: SuiteWords, output: Output) -> dict[str, Any]:
    words.refuse("protocol")
    from sortyard.studies.suites.long import LENGTHS, LongPlan, run_long
    from sortyard.studies.suites.long_documents import LONG_TASKS

    tasks = LONG_TASKS if words.tasks is None else read_words("--tasks", words.tasks, known=LONG_TASKS)
    if not data and tuple(tasks) != ("listops",):
        raise InputError("--suite long needs --data: folders with imdb_train.parquet, imdb_test.parquet and so on")
    lengths = LENGTHS if words.lengths is None else read_lengths(words.lengths)
    if lengths[0] < 64:
        raise InputError(f"--lengths {lengths[0]}: give 64 tokens or more")
    numbers = {"train": words.train_examples, "test": words.test_examples}
    plan = LongPlan(
        run, tuple(data), tuple(tasks), lengths=lengths, changes=words.changes, **_given(numbers), **_shared(words)
    )
    return run_long(plan, display=output.display())


def _shared(words: SuiteWords) -> dict[str, Any]:
    given = _given({"seeds": words.seeds, "jobs": words.jobs, "out": words.out})
    return {**given, "keep_models": words.keep_models}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
