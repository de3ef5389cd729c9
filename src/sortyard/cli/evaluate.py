"""`sortyard eval`: a model's scores."""

from pathlib import Path
from typing import Annotated

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
        str | None, typer.Option("--data", help="Folder or file of the examples or text.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Sequences in one forward pass.")] = 32,
    *,
    output: Output,
) -> None:
    """Score a run's model again: a task's metrics, or loss and perplexity on held-out text."""
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
