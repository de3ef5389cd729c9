"""`sortyard resume`: an interrupted run to its end."""

from sortyard.cli.arguments import RunArgument
from sortyard.cli.output import Output, verb


@verb
def resume(run: RunArgument, *, output: Output) -> None:
    """Continue an interrupted run where its newest checkpoint stands."""
    from sortyard.jobs.resuming import resume_run

    found = resume_run(run, display=output.display())
    output.result(found, text=f"{found['run']}: {found['steps']:,} steps ({found['reason']})")
