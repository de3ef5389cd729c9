"""Where a verb's words go: results to stdout, everything else to stderr."""

import functools
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sortyard.jobs.display import Display
    from sortyard.runs.progress import Progress


@dataclass(frozen=True)
class Output:
    """What the user asked to see.

    Attributes:
        json: The last line of stdout is one JSON object and nothing else goes there.
        quiet: No progress, only results and warnings.
        verbose: Also the log of the libraries below.
        debug: Show the traceback of an error.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    def say(self, text: str) -> None:
        """Tells the user what is going on, on stderr, unless quiet."""
        if not self.quiet and is_first_process():
            print(text, file=sys.stderr, flush=True)

    def display(self) -> "Display":
        """Returns what the jobs below tell their progress to: stderr, or nobody when quiet."""
        from sortyard.jobs.display import Display

        options = tuple(f"--{name}" for name in ("quiet", "verbose", "debug") if getattr(self, name))
        if self.quiet or not is_first_process():
            return Display(options=options)
        return Display(say=self.say, progress=_progress, options=options)

    def result(self, record: Mapping[str, Any], *, text: str) -> None:
        """Prints what the verb found: the record as one line of JSON, or the text.

        Args:
            record: JSON values; paths are written as text.
            text: The same for a human reader; not printed when empty.
        """
        if not is_first_process():
            return
        if self.json:
            print(json.dumps(record, default=_plain, ensure_ascii=False), flush=True)
        elif text:
            print(text, flush=True)


def is_first_process() -> bool:
    """Says whether this is the one process of several, as torchrun numbers them, that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _progress(label: str) -> "Progress":
    from rich.console import Console

    from sortyard.runs.progress import make_progress

    return make_progress(Console(stderr=True), label=label)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb the options that every verb has, and hands them to it as its argument `output`."""
    common = {
        "json_output": (
            Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")],
            False,
        ),
        "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")], False),
        "verbose": (Annotated[bool, typer.Option("--verbose", "-v", help="The libraries' log too.")], False),
        "debug": (Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")], False),
    }

    @functools.wraps(function)
    def with_output(*, json_output: bool, quiet: bool, verbose: bool, debug: bool, **arguments: Any) -> None:
        _set_up_logs(verbose=verbose)
        function(**arguments, output=Output(json=json_output, quiet=quiet, verbose=verbose, debug=debug))

    own = [item for item in inspect.signature(function).parameters.values() if item.name != "output"]
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in common.items()
    ]
    positional = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own]
    with_output.__signature__ = inspect.Signature([*positional, *extra])  # type: ignore[attr-defined]
    with_output.__annotations__ = {item.name: item.annotation for item in [*positional, *extra]}
    return with_output


def _set_up_logs(*, verbose: bool) -> None:
    """Keeps other libraries' notes out of the way, and writes warnings in one line; set before they are imported."""
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr, flush=True)

    warnings.showwarning = show
