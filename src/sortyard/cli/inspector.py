"""`sortyard inspect`: look at a model while it reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

if TYPE_CHECKING:
    from sortyard.reports.inspector.inspector import Inspector

Source = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, a demo or a model.", show_default=False)]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the page; 0 takes a free one.")]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Print the address and open nothing.")]
Out = Annotated[Path | None, typer.Option("--out", help="Freeze into this HTML file; no server.", show_default=False)]
Text = Annotated[str | None, typer.Option("--text", help="What to look at, for --out.", show_default=False)]
InputFile = Annotated[Path | None, typer.Option("--input", help="A file with the text, for --out.", show_default=False)]
Before = Annotated[str, typer.Option("--before", help="What stands before the text, for --out.", show_default=False)]
Other = Annotated[
    str | None,
    typer.Option("--other-before", help="Something else before it, to compare, for --out.", show_default=False),
]
Layer = Annotated[
    int | None, typer.Option("--layer", min=1, help="Layer shown first, from 1, for --out.", show_default=False)
]
Head = Annotated[
    int | None, typer.Option("--head", min=1, help="Head shown first, from 1, for --out.", show_default=False)
]


@verb
def inspector(
    run: Source,
    *,
    port: Port = 0,
    no_browser: NoBrowser = False,
    out: Out = None,
    text: Text = None,
    input_file: InputFile = None,
    before: Before = "",
    other: Other = None,
    layer: Layer = None,
    head: Head = None,
    output: Output,
) -> None:
    """Open a local page: what a model's heads read, exactly or by summary, and where its tokens go."""
    from sortyard.jobs.inspecting import freeze, open_inspector, read_text

    frozen_only = (text, input_file, other, layer, head, before or None)
    if out is None and any(value is not None for value in frozen_only):
        raise InputError("--text, --input, --before, --other-before, --layer and --head belong to --out PAGE.html")
    if out is not None and (text is None) == (input_file is None):
        raise InputError("--out needs a text to freeze: give --text or --input, one of them")
    if out is None:
        _serve(open_inspector(run), port=port, no_browser=no_browser, output=output)
        return
    from sortyard.reports.inspector.page import Question

    content = text if input_file is None else read_text(input_file, option="--input")
    question = Question(
        text=content or "",
        before=before,
        other=other,
        layer=None if layer is None else layer - 1,
        head=None if head is None else head - 1,
    )
    found = freeze(open_inspector(run), question, out=out)
    shown = f"{found['page']}  {found['bytes'] / 1e6:.1f} MB, {found['tokens']:,} tokens, {found['heads']} heads"
    output.result({"run": run, **found}, text=shown)


def _serve(opened: "Inspector", *, port: int, no_browser: bool, output: Output) -> None:
    import webbrowser

    from sortyard.jobs.inspector_server import InspectorServer
    from sortyard.reports.inspector.page import live_page

    with InspectorServer(opened, page=live_page(opened), port=port) as server:
        output.result({"url": server.url}, text=server.url)
        output.say("Ctrl-C ends it")
        if not no_browser:
            webbrowser.open(server.url)
        server.serve_forever()
