"""`sortyard bench encoder`: whole encoders beside BERT and ModernBERT."""

from typing import Annotated

import typer

from sortyard.cli.bench_values import (
    CallSeconds,
    Device,
    Dtypes,
    Fresh,
    Memory,
    Minutes,
    Out,
    Repetitions,
    SeedOfInputs,
    Threads,
    check_device,
    minutes_for_all,
    read_dtypes,
    read_lengths,
    read_memory,
    read_words,
    show_result,
    thread_count,
)
from sortyard.cli.output import Output, verb

SHORT, LENGTHS, QUICK_LENGTHS = "sst2", "sst2,512,2k,8k,16k,32k", "sst2,512"


@verb
def encoder(
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths",
            help=f"sst2 for sentences as short as SST-2's, and tokens: {LENGTHS}; quick {QUICK_LENGTHS}.",
            show_default=False,
        ),
    ] = None,
    dtypes: Dtypes = None,
    sides: Annotated[
        str | None,
        typer.Option("--sides", help="Only these, such as sortyard,bert-large@dynamic.", show_default=False),
    ] = None,
    sentences: Annotated[int, typer.Option("--sentences", min=1, help="Short sentences of a call, about.")] = 128,
    threads: Threads = None,
    repetitions: Repetitions = None,
    memory: Memory = None,
    call_seconds: CallSeconds = 120.0,
    minutes: Minutes = None,
    seed: SeedOfInputs = 0,
    device: Device = "cpu",
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="A subset that takes some ten minutes.")] = False,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """Sentences and tokens a second of whole encoders: BERT, ModernBERT and ours of equal total parameters."""
    words = [word.strip() for word in (lengths or (QUICK_LENGTHS if quick else LENGTHS)).split(",")]
    numbers = ",".join(word for word in words if word != SHORT)
    lengths_ = read_lengths(numbers) if numbers else ()
    dtypes_ = read_dtypes(dtypes, quick=quick)
    memory_ = read_memory(memory or ("none" if quick else "all"), lengths=lengths_) if lengths_ else ()
    check_device(device)
    from sortyard.studies.bench.budgets import Budget
    from sortyard.studies.bench.encoder import EncoderPlan, run_encoder
    from sortyard.studies.bench.encoder_cases import FIXED
    from sortyard.studies.bench.encoder_sides import find_sides
    from sortyard.studies.bench.results import result_folder

    known = (*(find_sides(SHORT) if SHORT in words else ()), *(find_sides(FIXED) if lengths_ else ()))
    plan = EncoderPlan(
        short=SHORT in words, lengths=lengths_, dtypes=dtypes_, sentences=sentences, threads=thread_count(threads),
        repetitions=repetitions or (2 if quick else 5), memory=memory_,
        sides=() if sides is None else read_words("--sides", sides, known=known), seed=seed, device=device,
        budget=Budget(call_seconds=call_seconds, patience_seconds=25.0), minutes=minutes_for_all(minutes),
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_encoder(plan, folder=folder, fresh=fresh, say=output.say)
    show_result(result, text, folder=folder, output=output)
