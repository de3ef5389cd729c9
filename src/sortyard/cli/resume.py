"""`sortyard resume`: an interrupted run to its end."""

from typing import Annotated

import typer

from sortyard.cli.adapt import adapted_text
from sortyard.cli.arguments import RunArgument
from sortyard.cli.output import Output, verb


@verb
def resume(
    run: RunArgument,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings to go on with instead; each needs --allow.", show_default=False
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow", metavar="KEY", help="Go on though this value differs; may be repeated.", show_default=False
        ),
    ] = None,
    *,
    output: Output,
) -> None:
    """Continue an interrupted run where its newest checkpoint stands, under the recipe it was begun with."""
    from sortyard.jobs.folders import is_demo
    from sortyard.jobs.resuming import resume_run
    from sortyard.runs.folder import RunFolder

    if not is_demo(run):
        RunFolder.open(run)  # a folder that is no run is refused before a lock is left in it
    found = resume_run(run, display=output.display(), overrides=words or (), allow=allow or ())
    plain = f"{found['run']}: {found['steps']:,} steps ({found['reason']})"
    output.result(found, text=adapted_text(found) if "before" in found else plain)
