"""`sortyard eval`: a model's scores, or how it uses its experts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sortyard.cli.arguments import RunArgument
from sortyard.cli.finetune import GLUE, score_text
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError


@verb
def evaluate(
    run: RunArgument,
    task: Annotated[
        str | None, typer.Option("--task", help="A GLUE task or custom; the run's own if left out.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="Folder or file of the examples or text; with --routing several times, also as NAME=PATH.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Sequences in one forward pass.")] = 32,
    routing: Annotated[bool, typer.Option("--routing", help="How the experts are used, instead of scores.")] = False,
    text_column: Annotated[
        str | None,
        typer.Option("--text-column", help="With --routing: column of the text in --data.", show_default=False),
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
    *,
    output: Output,
) -> None:
    """Score a run's model again (a task's metrics, or loss and perplexity on text), or look at its experts."""
    texts = tuple(data or ())
    if routing:
        if task is not None:
            raise InputError(f"--task {task}: --routing reads text, not a task; give --data, or leave both out")
        if text_column is not None and not texts:
            raise InputError(f"--text-column {text_column}: is the column of a text that --data names; give --data")
        _routing(run, texts=texts, text_column=text_column, max_tokens=max_tokens, batch_size=batch_size, output=output)
        return
    for name, value in (("--text-column", text_column), ("--max-tokens", max_tokens)):
        if value is not None:
            raise InputError(f"{name} {value}: is only for --routing")
    if len(texts) > 1:
        raise InputError(f"--data: is given {len(texts)} times; several texts are only for --routing")
    _scores(run, task=task, data=texts[0] if texts else None, batch_size=batch_size, output=output)


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
