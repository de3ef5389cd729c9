"""`sortyard report`: a run to one HTML page."""

from sortyard.cli.arguments import RunArgument
from sortyard.cli.output import Output, verb


@verb
def report(run: RunArgument, *, output: Output) -> None:
    """Write report.html for a run: one file that opens offline."""
    from sortyard.reports.report import write_report

    path = write_report(run)
    output.result({"run": run, "report": path}, text=str(path))
