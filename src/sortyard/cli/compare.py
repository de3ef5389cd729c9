"""`sortyard compare`: several runs beside each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

if TYPE_CHECKING:
    from sortyard.reports.comparison.comparison import Comparison

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of two runs or more.", show_default=False)
]
Out = Annotated[Path | None, typer.Option("--out", help="Also write this HTML page.", show_default=False)]


@verb
def compare(runs: Runs, *, out: Out = None, output: Output) -> None:
    """Set runs side by side: recipes, losses, scores, speed, and whether they can be compared at all."""
    from sortyard.reports.comparison.comparison import compare_runs
    from sortyard.reports.comparison.page import write_comparison

    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise InputError(f"--out {out}: must be a file in a folder that exists, such as compare.html")
    comparison = compare_runs(runs)
    page = None if out is None else write_comparison(comparison, out=out)
    output.result(comparison.record() | {"page": page}, text=_account(comparison, page=page))


def _account(comparison: "Comparison", *, page: Path | None) -> str:
    from sortyard.reports.comparison.page import verdict
    from sortyard.reports.comparison.tables import differing_table, figures_table, paired_table
    from sortyard.studies.bench.tables import text_table

    tables = [figures_table(comparison)]
    tables += [differing_table(comparison)] if comparison.differing else []
    tables += [paired_table(comparison)] if comparison.paired else []
    parts = [text_table(table) for table in tables]
    if comparison.warnings:
        parts.append("\n".join(f"mind: {warning}" for warning in comparison.warnings))
    return "\n\n".join([*parts, verdict(comparison), *([str(page)] if page else [])])
