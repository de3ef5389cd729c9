"""`sortyard doctor`: what is wrong with this machine, and what to do."""

from dataclasses import asdict
from pathlib import Path

import typer

from sortyard.cli.output import Output, verb

SIGNS = {"ok": "ok      ", "note": "note    ", "blocking": "BLOCKING"}


@verb
def doctor(*, output: Output) -> None:
    """Check Python, packages, devices, memory, disk and network; say what to do about each finding."""
    from sortyard.jobs.checkup import examine

    findings = []
    for finding in examine(Path()):
        findings.append(finding)
        if not output.json:
            print(f"{SIGNS[finding.level]}  {finding.name}: {finding.found}", flush=True)
            if finding.advice:
                print(f"          -> {finding.advice}", flush=True)
    blocking = [finding.name for finding in findings if finding.level == "blocking"]
    text = f"mend these first: {', '.join(blocking)}" if blocking else "ready to train: try `sortyard demo`"
    output.result({"fit": not blocking, "findings": [asdict(item) for item in findings]}, text=text)
    if blocking:
        raise typer.Exit(1)
