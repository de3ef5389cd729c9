"""`sortyard export`: a finished model for others."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sortyard.cli.arguments import RunArgument
from sortyard.cli.output import Output, verb


@verb
def export(
    run: RunArgument,
    form: Annotated[
        Literal["huggingface", "torch", "onnx"],
        typer.Option("--format", help="A Hugging Face folder, or a program of any shape: torch.export, or ONNX."),
    ] = "huggingface",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; must be new or empty.", show_default=False)
    ] = None,
    *,
    output: Output,
) -> None:
    """Write a finished model as a Hugging Face folder, a traced program or an ONNX file."""
    from sortyard.jobs.exporting import export_to_folder

    found = export_to_folder(Path(run), form=form, out=out, display=output.display())
    lines = [f"{found['folder']}: {', '.join(found['files'])}"]
    if "largest_difference" in found:
        apart = ", ".join(f"{shape} {value:.0e}" for shape, value in found["largest_difference"].items())
        again = f" (smallest of {found['draws']} draws)" if found["draws"] > 1 else ""
        lines.append(f"difference from the model, by batch size x length: {apart}{again}")
    output.result(found, text="\n".join(lines))
