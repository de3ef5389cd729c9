"""`sortyard predict`: lines in, JSON lines out."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TextIO

import typer

from sortyard.cli.arguments import RunArgument
from sortyard.cli.output import Output, verb
from sortyard.durable import aside_of, publish
from sortyard.errors import InputError


@verb
def predict(
    run: RunArgument,
    source: Annotated[str, typer.Option("--input", "-i", help="Text lines, JSONL, TSV or CSV; - reads stdin.")] = "-",
    target: Annotated[str, typer.Option("--output", "-o", help="JSON lines; - writes to stdout.")] = "-",
    text_column: Annotated[str, typer.Option("--text-column", help="Column of the text in JSONL, TSV, CSV.")] = "text",
    pair_column: Annotated[
        str | None, typer.Option("--pair-column", help="Column of the second text.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Sequences in one forward pass at most.", show_default=False),
    ] = None,
    tokens_per_batch: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-batch",
            min=1,
            help="Tokens in one forward pass at most, padding included; left out, what suits the device.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:0.")] = "cpu",
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "auto"],
        typer.Option("--precision", help="Number format of weights and products; auto is bf16 where that is fast."),
    ] = "fp32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model first, which takes a minute or two: for long work.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an --output that was interrupted; give the same input.")
    ] = False,
    *,
    output: Output,
) -> None:
    """Classify texts with a fine-tuned model; order kept, memory bounded."""
    from sortyard.jobs.predicting import begin, model_digest, open_predictor, prediction_lines, read_inputs, take_up

    if source == "-" and sys.stdin is None:
        raise InputError("standard input is closed; give --input FILE")
    path = None if target == "-" else _free(Path(target), resume=resume)
    if path is None and resume:
        raise InputError("--resume needs --output FILE: what went to standard output is not known here")
    inputs = read_inputs(source, text_column=text_column, pair_column=pair_column)
    predictor = open_predictor(Path(run), device=device, precision=precision, compiled=compiled)
    begun = 0
    if path is not None:
        model, aside = model_digest(Path(run)), aside_of(path)
        if resume:
            begun = take_up(aside, inputs, model=model)
        else:
            begin(aside, model=model)
    if begun:
        output.say(f"{begun:,} predictions are there already")
    lines = prediction_lines(predictor, inputs, batch_size=batch_size, tokens_per_batch=tokens_per_batch, first=begun)
    count = begun + (_copy(lines, sink=sys.stdout) if path is None else _write(lines, path=path, append=resume))
    output.say(f"{count:,} predictions")
    if output.json:
        output.result({"run": run, "output": target, "predictions": count}, text="")


def _free(path: Path, *, resume: bool) -> Path:
    if path.exists() or not path.parent.is_dir():
        reason = "exists and is left as it is" if path.exists() else f"the folder {path.parent} does not exist"
        raise InputError(f"--output {path}: {reason}; choose another name")
    begun = aside_of(path)
    if begun.exists() != resume:
        hint = "was begun and interrupted: add --resume, or delete" if begun.exists() else "has nothing to resume: no"
        raise InputError(f"--output {path}: {hint} {begun}")
    return path


def _write(lines: Iterable[str], *, path: Path, append: bool) -> int:
    """Writes aside until all is there, so that no unfinished file looks whole; what is there can be resumed."""
    from sortyard.jobs.predicting import note_of

    aside = aside_of(path)
    try:
        with aside.open("a" if append else "w", encoding="utf-8") as sink:
            count = _copy(lines, sink=sink)
    finally:
        if aside.stat().st_size == 0:
            aside.unlink()
            note_of(aside).unlink(missing_ok=True)
    publish(path)
    note_of(aside).unlink(missing_ok=True)
    return count


def _copy(lines: Iterable[str], *, sink: TextIO) -> int:
    count = 0
    for line in lines:
        sink.write(line + "\n")
        count += 1
    sink.flush()
    return count
