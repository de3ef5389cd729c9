"""`sortyard study claims`: the article's claims, measured on this machine beside their controls."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from sortyard.cli.arguments import named_paths
from sortyard.cli.bench_values import Out, show_result
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

_TREE = "tree-default-compiled"


@verb
def claims(
    scale: Annotated[
        Literal["cpu", "gpu"], typer.Option("--scale", help="cpu: two hours on 2 cores; gpu: more steps, longer texts.")
    ] = "cpu",
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=PATH",
            help="Text to train and count on, several times; Python's documentation if left out.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option("--encoder", help="Folder of a dense pretrained encoder, for C4.", show_default=False),
    ] = None,
    glue: Annotated[Path | None, typer.Option("--glue", help="Folder with SST-2, for C4.", show_default=False)] = None,
    novels: Annotated[
        Path | None,
        typer.Option("--novels", help="A table with text and author, for C7's classifier.", show_default=False),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Only these claims, such as C1,C6.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Trainings at the same time, one core each.")] = 2,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", min=0.0, help="Begin nothing after so many; 0 = read what is there.", show_default=False
        ),
    ] = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and show what is measured.")] = False,
    *,
    output: Output,
) -> None:
    """Measure the article's twelve claims beside their controls; the same command goes on where it was stopped."""
    texts = named_paths("--data", data)
    if (encoder is None) != (glue is None):
        raise InputError("--encoder and --glue: C4 needs both, the dense encoder and the folder with SST-2")
    for option, place in (("--encoder", encoder), ("--glue", glue)):
        if place is not None and not place.is_dir():
            raise InputError(f"{option} {place}: there is no such folder")
    if novels is not None and not novels.is_file():
        raise InputError(f"--novels {novels}: there is no such file")
    from sortyard.studies.bench.results import result_folder
    from sortyard.studies.bench.sides import find_sides
    from sortyard.studies.claims.claim_list import BY_ID
    from sortyard.studies.claims.ledger import ClaimsPlan, check_claims, run_claims

    chosen = tuple(BY_ID) if only is None else check_claims([word.strip() for word in only.split(",")])
    if scale == "gpu":
        _check_gpu()
    plan = ClaimsPlan(
        texts=texts, encoder=encoder, glue=glue, novels=novels, claims=chosen, gpu=scale == "gpu", jobs=jobs,
        compiled=_TREE in find_sides("cpu"), minutes=math.inf if minutes is None else minutes,
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_claims(plan, folder=folder, dry_run=dry_run, say=output.say)
    if dry_run:
        output.result(result.record(), text=text)
    else:
        show_result(result, text, folder=folder, output=output)


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError("--scale gpu: there is no GPU that torch can use; take --scale cpu")
