"""`sortyard bench training`: time and memory of a training step."""

from typing import Annotated

import typer

from sortyard.cli.bench_values import (
    Device,
    Fresh,
    Minutes,
    Out,
    Repetitions,
    SeedOfInputs,
    check_device,
    minutes_for_all,
    read_lengths,
    read_words,
    show_result,
)
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

TOPICS = ("checkpointing", "precision", "twin", "accumulation", "packing")
LENGTHS, QUICK_LENGTHS = "512,2k", "512"
WIDTH_STEP = 192  # whole heads of 64, and experts of two thirds of the width


@verb
def training(
    topics: Annotated[
        str | None, typer.Option("--topics", help=f"Among {','.join(TOPICS)}; all if left out.", show_default=False)
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", help=f"Tokens of a row: {LENGTHS}; quick {QUICK_LENGTHS}.", show_default=False),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=64, help="Tokens of a step: 4096; quick 1024.", show_default=False)
    ] = None,
    hidden_size: Annotated[int, typer.Option("--hidden-size", min=WIDTH_STEP, help="Width.")] = 768,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers.")] = 3,
    vocabulary: Annotated[int, typer.Option("--vocabulary", min=16, help="Token ids.")] = 8192,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Threads of torch; with 1, seconds are the processor's own.")
    ] = 1,
    repetitions: Repetitions = None,
    minutes: Minutes = None,
    seed: SeedOfInputs = 0,
    device: Device = "cpu",
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="A subset that takes a few minutes.")] = False,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """Time and memory of a training step: number formats, activation checkpointing, portions, rows, the dense twin."""
    topics_ = TOPICS if topics is None else read_words("--topics", topics, known=TOPICS)
    lengths_ = read_lengths(lengths or (QUICK_LENGTHS if quick else LENGTHS))
    tokens_ = tokens or (1024 if quick else 4096)
    if lengths_[-1] > tokens_:
        raise InputError(f"--lengths {lengths_[-1]}: must not exceed --tokens, which is {tokens_}")
    if hidden_size % WIDTH_STEP:
        raise InputError(f"--hidden-size {hidden_size}: must be a multiple of {WIDTH_STEP}")
    check_device(device)
    from sortyard.studies.bench.results import result_folder
    from sortyard.studies.bench.training import TrainingPlan, run_training

    plan = TrainingPlan(
        topics=topics_, lengths=lengths_, tokens=tokens_, hidden_size=hidden_size, layers=layers,
        vocabulary=vocabulary, threads=threads, repetitions=repetitions or (2 if quick else 5), seed=seed,
        device=device, minutes=minutes_for_all(minutes),
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_training(plan, folder=folder, fresh=fresh, say=output.say)
    show_result(result, text, folder=folder, output=output)
