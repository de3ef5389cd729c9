"""`sortyard push`: a finished model to a hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sortyard.cli.output import Output, verb


@verb
def push(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or of a model.", show_default=False)],
    repo: Annotated[str, typer.Option("--repo", metavar="OWNER/NAME", help="Repository on the hub.")],
    license_name: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="Licence of the weights, such as apache-2.0.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="NAME", help="Hub name of the model this one was made from, if unknown."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only you may see the repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and card; upload nothing.")] = False,
    *,
    output: Output,
) -> None:
    """Upload a finished model and its card to the Hugging Face hub."""
    from sortyard.jobs.pushing import push_model
    from sortyard.reports.card_metadata import Release

    release = Release(place=repo, license=license_name, base_model=base_model)
    found = push_model(source, release=release, private=private, dry_run=dry_run, display=output.display())
    output.result(found, text=_account(found))


def _account(found: dict[str, Any]) -> str:
    names = found["files"]
    if not found["dry_run"]:
        return f"{found['address']}: {len(names)} files, {found['bytes']:,} bytes"
    kind = " (private)" if found["private"] else ""
    lines = [f"{found['repo']}{kind} would get {len(names)} files, {found['bytes']:,} bytes:"]
    lines += [f"{size:>16,}  {name}" for name, size in names.items()]
    if found["left_out"]:
        lines.append(f"left out: {', '.join(found['left_out'])}")
    return "\n".join([*lines, "", "README.md:", "", found["card"]])
