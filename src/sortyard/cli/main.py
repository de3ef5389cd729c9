"""The entry point: the verbs, and what becomes of errors."""

import errno
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import sortyard
from sortyard.cli import (
    adapt,
    bench,
    compare,
    config,
    data,
    demo,
    doctor,
    evaluate,
    export,
    finetune,
    inspector,
    new,
    plan,
    predict,
    pretrain,
    push,
    recipes,
    report,
    resume,
    study,
    upcycle,
)
from sortyard.cli.output import is_first_process
from sortyard.errors import InputError, LostProcessError, first_line

# What a file system answers to a path that it cannot serve: the person chose the path, so it is the input's fault.
REFUSALS = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR,
    errno.EPERM, errno.EROFS,
}  # fmt: skip
SHOWN_PATH = 120
TOGETHER = ("pretrain", "resume")  # what several processes may do; resume refuses runs that are no pretraining

START, TRAIN, USE, DATA = "Start here", "Train", "Measure and use", "Data and configuration"

app = typer.Typer(
    name="sortyard",
    help="Train, test and look inside long-context encoders that are sparse twice: bucket attention, routed experts.",
    epilog="Exit status: 0 done, 2 the input is at fault, 130 interrupted, 143 ended by SIGTERM, 1 else.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command("demo", rich_help_panel=START)(demo.demo)
app.command("doctor", rich_help_panel=START)(doctor.doctor)
app.command("recipes", rich_help_panel=START)(recipes.recipes)
app.command("new", rich_help_panel=START)(new.new)
app.command("pretrain", rich_help_panel=TRAIN)(pretrain.pretrain)
app.command("finetune", rich_help_panel=TRAIN)(finetune.finetune)
app.command("upcycle", rich_help_panel=TRAIN)(upcycle.upcycle)
app.command("adapt", rich_help_panel=TRAIN)(adapt.adapt)
app.command("resume", rich_help_panel=TRAIN)(resume.resume)
app.command("plan", rich_help_panel=TRAIN)(plan.plan)
app.command("eval", rich_help_panel=USE)(evaluate.evaluate)
app.command("predict", rich_help_panel=USE)(predict.predict)
app.command("export", rich_help_panel=USE)(export.export)
app.command("push", rich_help_panel=USE)(push.push)
app.command("report", rich_help_panel=USE)(report.report)
app.command("compare", rich_help_panel=USE)(compare.compare)
app.command("inspect", rich_help_panel=USE)(inspector.inspector)
app.add_typer(bench.app, name="bench", rich_help_panel=USE)
app.add_typer(study.app, name="study", rich_help_panel=USE)
app.add_typer(config.app, name="config", rich_help_panel=DATA)
app.add_typer(data.app, name="data", rich_help_panel=DATA)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(sortyard.__version__)
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does it all
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if several and context.invoked_subcommand not in TOGETHER:
        raise InputError(f"sortyard {context.invoked_subcommand} runs in one process; start it without torchrun")


def main(words: Sequence[str]) -> int:
    """Runs one command line.

    Args:
        words: The words after the program's name.

    Returns:
        The exit status: 0 done, 2 the input is at fault, 130 interrupted, 143 ended by SIGTERM, 1 else.
    """
    debug = "--debug" in words or os.environ.get("SORTYARD_DEBUG", "") not in ("", "0")
    try:
        app(list(words), prog_name="sortyard")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else (0 if stop.code is None else 1)
        message = "interrupted" if status == 130 else "see the message on stderr"
        if status == 130:
            _say_interrupted()
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
        _say_interrupted()
    except ValueError as error:
        status, message = 2, str(error)
        _complain(error, debug=debug, keep=False)
    except LostProcessError as error:
        status, message = 1, str(error)
        _complain(error, debug=debug, keep=False)
    except Exception as error:
        refusal = _refused_path(error)
        status, message = (1, f"{type(error).__name__}: {error}") if refusal is None else (2, str(refusal))
        _complain(refusal or error, debug=debug, keep=refusal is None)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how the tokenizers library breaks off; Python knows no such type
            raise
        refusal = InputError(f"the tokenizer cannot be run on this text ({first_line(error)}); choose another one")
        status, message = 2, str(refusal)
        _complain(refusal, debug=debug, keep=False)
    else:
        status, message = 0, ""
    try:
        if status != 0 and "--json" in words and is_first_process():
            print(json.dumps({"error": message, "exit_status": status}), flush=True)
    except BrokenPipeError:  # the reader has gone; Python must not try again, and complain, when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _say_interrupted() -> None:
    if "RANK" not in os.environ:  # of several processes, the one that started them says it
        print("interrupted", file=sys.stderr)


def _refused_path(error: Exception) -> InputError | None:
    """Puts the file system's refusal of a path that the user chose into words; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in REFUSALS:
        return None
    path = (
        "a file or the output cannot be written" if error.filename is None else str(error.filename)
    )  # writing knows no name, only opening does
    shown = path if len(path) <= SHOWN_PATH else f"{path[:SHOWN_PATH]}..."
    refusal = InputError(f"{shown}: {error.strerror}")
    refusal.__cause__ = error
    return refusal


def _complain(error: Exception, *, debug: bool, keep: bool) -> None:
    """Prints an error in one piece, with the traceback in debug mode, else kept in a file for a bug report."""
    if not is_first_process() or (isinstance(error, LostProcessError) and "RANK" in os.environ):
        time.sleep(5)  # what befell the first process, too, or one of the others, is told once: this one is ended now
    if not is_first_process():
        print(f"process {os.environ['RANK']} of {os.environ.get('WORLD_SIZE')}:", end=" ", file=sys.stderr)
    if debug:
        traceback.print_exception(error)
        return
    if not keep:
        print(f"error: {error}", file=sys.stderr)
        return
    with tempfile.NamedTemporaryFile("w", prefix="sortyard-", suffix=".log", delete=False, encoding="utf-8") as log:
        traceback.print_exception(error, file=log)
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"This is not your input's fault. The traceback is in {log.name}; --debug shows it.", file=sys.stderr)


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))
