"""`sortyard eval`: a model's scores, or how it uses its experts."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sortyard.cli.arguments import RunArgument
from sortyard.cli.finetune import GLUE, score_text
from sortyard.cli.output import Output, verb
from sortyard.cli.suites import (
    Jobs,
    KeepModels,
    Lengths,
    ProtocolOption,
    Seeds,
    Suite,
    SuiteOut,
    SuiteWords,
    Tasks,
    TestExamples,
    TrainExamples,
    run_suite,
)
from sortyard.errors import InputError


@verb
def evaluate(
    run: RunArgument,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="With --suite: settings of fine-tuning, such as finetune.loop.epochs=1.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="A GLUE task or custom; the run's own if left out.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="Folder or file of the examples or text; several texts, also as NAME=PATH, are scored one by one.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Sequences in one forward pass.")] = 32,
    routing: Annotated[bool, typer.Option("--routing", help="How the experts are used, instead of scores.")] = False,
    text_column: Annotated[
        str | None,
        typer.Option("--text-column", help="Column of the text in --data.", show_default=False),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="With --routing: tokens read of each text; 262144 if left out.",
            show_default=False,
        ),
    ] = None,
    suite: Suite = None,
    tasks: Tasks = None,
    protocol: ProtocolOption = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    out: SuiteOut = None,
    keep_models: KeepModels = False,
    lengths: Lengths = None,
    train_examples: TrainExamples = None,
    test_examples: TestExamples = None,
    *,
    output: Output,
) -> None:
    """Score a run's model again (a task's metrics, loss and perplexity of texts, a suite), or look at its experts."""
    texts = tuple(data or ())
    given = SuiteWords(
        suite, tasks, protocol, seeds, jobs, out, keep_models, lengths, train_examples, test_examples,
        tuple(words or ()),
    )  # fmt: skip
    if suite is not None:
        _refuse_beside_suite(task=task, routing=routing, text_column=text_column, max_tokens=max_tokens)
        run_suite(run, data=texts, words=given, output=output)
        return
    given.refuse_without_suite()
    if routing:
        if task is not None:
            raise InputError(f"--task {task}: --routing reads text, not a task; give --data, or leave both out")
        if text_column is not None and not texts:
            raise InputError(f"--text-column {text_column}: is the column of a text that --data names; give --data")
        _routing(run, texts=texts, text_column=text_column, max_tokens=max_tokens, batch_size=batch_size, output=output)
        return
    if max_tokens is not None:
        raise InputError(f"--max-tokens {max_tokens}: is only for --routing")
    if task is None and _are_domains(texts):
        _domains(run, texts=texts, text_column=text_column, batch_size=batch_size, output=output)
        return
    if text_column is not None:
        raise InputError(f"--text-column {text_column}: is for several --data, for --data NAME=PATH and for --routing")
    if len(texts) > 1:
        raise InputError(f"--data: is given {len(texts)} times; several texts are for a language model or --routing")
    _scores(run, task=task, data=texts[0] if texts else None, batch_size=batch_size, output=output)


def _refuse_beside_suite(*, task: str | None, routing: bool, text_column: str | None, max_tokens: int | None) -> None:
    beside = {"--task": task, "--routing": routing, "--text-column": text_column, "--max-tokens": max_tokens}
    for name, value in beside.items():
        if value:
            hint = "; choose tasks by --tasks" if name == "--task" else ""
            raise InputError(f"{name}: is not for --suite{hint}")


def _are_domains(texts: tuple[str, ...]) -> bool:
    """Whether each text is to have a score of its own; a file whose own name has a = in it is one text."""
    return len(texts) > 1 or any("=" in text and not os.path.exists(text) for text in texts)


def _domains(
    run: Path, *, texts: tuple[str, ...], text_column: str | None, batch_size: int, output: Output
) -> None:  # fmt: skip
    from sortyard.jobs.domains import evaluate_domains
    from sortyard.reports.suite_sections import domains_section
    from sortyard.studies.bench.tables import text_table

    found = evaluate_domains(
        Path(run), data=texts, text_column=text_column, batch_size=batch_size, display=output.display()
    )
    section = domains_section(found)
    output.result(found, text="\n\n".join([section.intro, *map(text_table, section.tables), str(found["file"])]))


def _scores(run: Path, *, task: str | None, data: str | None, batch_size: int, output: Output) -> None:
    from sortyard.recipe.suggestions import near_word

    if task is not None and task not in (*GLUE, "custom"):
        raise InputError(f"--task {task}: is none of {', '.join(GLUE)}, custom{near_word(task, GLUE)}")
    from sortyard.jobs.evaluating import evaluate_run

    found = evaluate_run(Path(run), task=task, data=data, batch_size=batch_size, display=output.display())
    if "task" in found:
        text = score_text(found)
    else:
        text = f"{found['run']}: " + ", ".join(f"{name} {value:.4g}" for name, value in found["evaluation"].items())
    output.result(found, text=text)


def _routing(
    run: Path,
    *,
    texts: tuple[str, ...],
    text_column: str | None,
    max_tokens: int | None,
    batch_size: int,
    output: Output,
) -> None:
    from sortyard.cli.routing_account import routing_account
    from sortyard.jobs.routing import MAX_TOKENS, RoutingRequest, evaluate_routing

    request = RoutingRequest(
        data=texts,
        text_column=text_column,
        max_tokens=MAX_TOKENS if max_tokens is None else max_tokens,
        batch_size=batch_size,
    )
    found: dict[str, Any] = evaluate_routing(Path(run), request=request, display=output.display())
    output.result(found, text=routing_account(found))
