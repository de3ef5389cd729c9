"""Options that the benchmarks share, and how their lists of words and numbers are read."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sortyard.cli.output import Output
from sortyard.errors import InputError

if TYPE_CHECKING:
    from sortyard.studies.bench.results import BenchResult

T = TypeVar("T")

DTYPES, DIRECTIONS = ("fp32", "bf16"), ("forward", "forward+backward")
MOST_TOKENS = 2**20
MOST_EXPERTS, MOST_EXPERTS_PER_TOK = 4096, 64

Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder; benchmarks/results where it exists, else this one.", show_default=False),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of going on with the result there.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of torch; its own choice if left out.", show_default=False),
]
Repetitions = Annotated[
    int | None,
    typer.Option("--repetitions", min=1, help="Runs of a side in a cell; fewer for slow ones.", show_default=False),
]
Dtypes = Annotated[str | None, typer.Option("--dtypes", help="fp32,bf16; quick fp32.", show_default=False)]
Directions = Annotated[
    str | None, typer.Option("--directions", help="forward,forward+backward; quick forward.", show_default=False)
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", help="Where to measure memory: all, longest (quick), none, lengths.", show_default=False),
]
CallSeconds = Annotated[
    float, typer.Option("--call-seconds", min=0.0, help="Skip a call that is predicted to take longer.")
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", min=0.0, help="Time for the whole: fewer runs, then fewer cells.", show_default=False),
]
SeedOfInputs = Annotated[int, typer.Option("--seed", min=0, help="Seed of the inputs.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:0.")]


def read_lengths(words: str, *, option: str = "--lengths") -> tuple[int, ...]:
    """Read numbers of tokens such as 512,4k, and put them in order without doubles.

    Raises:
        InputError: one of them is no number of tokens, or there is none.
    """
    return tuple(sorted(set(_each(option, words, lambda word: read_length(word, option=option, is_list=True)))))


def read_length(word: str, *, option: str, is_list: bool = False) -> int:
    """Read a number of tokens such as 512 or 4k.

    Raises:
        InputError: it is none.
    """
    digits, factor = (word[:-1], 1024) if word.endswith("k") else (word, 1)
    length = int(digits) * factor if digits.isascii() and digits.isdigit() else 0
    if not 1 <= length <= MOST_TOKENS:
        raise InputError(
            f"{option} {word}: expected tokens from 1 to {MOST_TOKENS:,}, such as 512 or 4k"
            + (", separated by commas" if is_list else "")
        )
    return length


def read_memory(words: str, *, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Read where memory is measured: all, longest, none, or lengths.

    Raises:
        InputError: one of the lengths is none.
    """
    named = {"all": lengths, "longest": (max(lengths),), "none": ()}
    if words in named:
        return named[words]
    return tuple(_each("--memory", words, lambda word: read_length(word, option="--memory")))


def read_experts(words: str, *, intermediate_size: int) -> tuple[tuple[int, int], ...]:
    """Read pairs of experts and experts of a token, such as 8x2,64x8.

    Args:
        words: The pairs.
        intermediate_size: Inner width that a token's experts share.

    Raises:
        InputError: one of them is no such pair, or does not divide the inner width.
    """

    def read(word: str) -> tuple[int, int]:
        left, _, right = word.partition("x")
        is_pair = all(part.isascii() and part.isdigit() for part in (left, right))
        num_experts, per_tok = (int(left), int(right)) if is_pair else (0, 0)
        most = min(num_experts, MOST_EXPERTS_PER_TOK)
        if not (2 <= num_experts <= MOST_EXPERTS and 1 <= per_tok <= most):
            raise InputError(
                f"--experts {word}: expected experts x experts of a token, such as 8x2,64x8, with 2 to "
                f"{MOST_EXPERTS:,} experts and 1 to {MOST_EXPERTS_PER_TOK} of them for a token"
            )
        if intermediate_size % per_tok:
            raise InputError(
                f"--experts {word}: {per_tok} experts of a token cannot share --intermediate-size {intermediate_size} "
                f"evenly; choose a multiple of {per_tok}"
            )
        return num_experts, per_tok

    return tuple(dict.fromkeys(_each("--experts", words, read)))


def read_words(option: str, words: str, *, known: tuple[str, ...], most: int = 100) -> tuple[str, ...]:
    """Read words out of a known set, doubles left out.

    Args:
        option: The option, for the error.
        words: The words, separated by commas.
        known: What they may be.
        most: How many there may be.

    Raises:
        InputError: a word is unknown, or there are none or too many.
    """

    def check(word: str) -> str:
        if word not in known:
            from sortyard.recipe.suggestions import near_word

            raise InputError(f"{option} {word}: is none of {', '.join(known)}{near_word(word, known)}")
        return word

    found = tuple(dict.fromkeys(_each(option, words, check)))
    if len(found) > most:
        raise InputError(f"{option} {words}: expected one of {', '.join(known)}")
    return found


def read_dtypes(words: str | None, *, quick: bool) -> tuple[str, ...]:
    """Read the number formats; left out, fp32 if quick, else all."""
    return read_words("--dtypes", words or ("fp32" if quick else ",".join(DTYPES)), known=DTYPES)


def read_directions(words: str | None, *, quick: bool) -> tuple[str, ...]:
    """Read the directions; left out, forward if quick, else all."""
    return read_words("--directions", words or ("forward" if quick else ",".join(DIRECTIONS)), known=DIRECTIONS)


def minutes_for_all(wanted: float | None) -> float:
    """Return the minutes asked for, else infinitely many."""
    return math.inf if wanted is None else wanted


def thread_count(wanted: int | None) -> int:
    """Return the threads asked for, else torch's own choice."""
    import torch

    return wanted or torch.get_num_threads()


def check_device(device: str) -> None:
    """Refuse a device that this torch does not have.

    Raises:
        InputError: the device is unknown or not there.
    """
    import torch

    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: expected cpu, cuda or cuda:0")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device {device}: this torch sees no CUDA device; use --device cpu, and see `sortyard doctor`"
        )


def show_result(result: "BenchResult", text: str, *, folder: Path, output: Output) -> None:
    """Print a result's tables and where its files are."""
    files = [folder / f"{result.name}.{kind}" for kind in ("json", "html")]
    output.result(result.record() | {"files": [str(path) for path in files]}, text=f"{text}\n\n{files[0]}\n{files[1]}")


def _each(option: str, words: str, read: Callable[[str], T]) -> list[T]:
    parts = [part.strip() for part in words.split(",") if part.strip()]
    if not parts:
        raise InputError(f"{option} {words!r}: is empty; give at least one value, or leave the option out")
    return [read(part) for part in parts]
