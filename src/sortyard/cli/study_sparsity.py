"""`sortyard study sparsity`: how sparse a pretrained model's attention can be."""

from typing import Annotated

import typer

from sortyard.cli.bench_values import Device, Fresh, Out, check_device, read_lengths, read_words, show_result
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

LENGTHS, SPARSITIES = "512,2048", "0,0.5,0.7,0.8,0.9,0.95,0.97,0.99"
MINUTES = 25.0


@verb
def sparsity(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A pretrained masked-LM run, or its folder.", show_default=False)
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Text of long documents; may be given again.", show_default=False),
    ] = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens of a passage.")] = LENGTHS,
    sparsities: Annotated[
        str, typer.Option("--sparsities", help="Shares of the pairs to leave out; dense is always measured.")
    ] = SPARSITIES,
    selections: Annotated[
        str | None, typer.Option("--selections", help="Only these, such as tree,random.", show_default=False)
    ] = None,
    adapt_steps: Annotated[
        int, typer.Option("--adapt-steps", min=0, help="Steps of fine-tuning on text; 0 = leave it out.")
    ] = 60,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of whatever is fine-tuned.")] = 1,
    task_data: Annotated[
        str | None,
        typer.Option("--task-data", help="A table with text and labels, to fine-tune on too.", show_default=False),
    ] = None,
    label_column: Annotated[str, typer.Option("--label-column", help="Its column with the labels.")] = "label",
    labels: Annotated[int, typer.Option("--labels", min=2, help="Labels that are told apart, at most.")] = 8,
    passages: Annotated[
        int, typer.Option("--passages", min=4, help="Passages of a label at a length, at most; a quarter is held out.")
    ] = 96,
    text_length: Annotated[
        str | None,
        typer.Option("--text-length", help="Tokens of a labelled passage; --lengths if left out.", show_default=False),
    ] = None,
    task_steps: Annotated[int, typer.Option("--task-steps", min=1, help="Steps of fine-tuning on the task.")] = 60,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.0, help="Time for the whole, most important cells first; 0 = no end.")
    ] = MINUTES,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Processes at once.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of each.")] = 1,
    device: Device = "cpu",
    out: Out = None,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """How sparse attention can be before loss and accuracy fall by 1 %, beside random and local attention."""
    if not data:
        raise InputError("--data: is missing; give a file or folder with documents as long as --lengths")
    lengths_, sparsities_ = _lengths("--lengths", lengths), _shares(sparsities)
    from sortyard.studies.bench.results import result_folder
    from sortyard.studies.sparsity.cores import POSITIONS, SELECTIONS
    from sortyard.studies.sparsity.plan import SparsityPlan
    from sortyard.studies.sparsity.study import run_sparsity

    known = tuple(SELECTIONS)
    check_device(device)
    able = known if device == "cpu" else tuple(name for name in known if name != POSITIONS)
    chosen = able if selections is None else read_words("--selections", selections, known=known)
    if not set(chosen) <= set(able):
        raise InputError(f"--selections {POSITIONS} is made on the CPU only; leave it or --device out")
    plan = SparsityPlan(
        model=model, texts=tuple(data), task_data=task_data or "", label_column=label_column, labels=labels,
        passages=passages, lengths=lengths_,
        task_lengths=lengths_ if text_length is None else _lengths("--text-length", text_length),
        sparsities=sparsities_, selections=tuple(name for name in known if name in chosen), adapt_steps=adapt_steps,
        task_steps=task_steps, seeds=seeds, minutes=minutes or float("inf"), jobs=jobs, threads=threads,
        device=device,
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_sparsity(plan, folder=folder, fresh=fresh, say=output.say)
    show_result(result, text, folder=folder, output=output)


def _lengths(option: str, words: str) -> tuple[int, ...]:
    found = read_lengths(words, option=option)
    if found[0] < 16:
        raise InputError(f"{option} {words}: expected at least 16 tokens, as shorter sequences leave nothing to choose")
    return found


def _shares(words: str) -> tuple[float, ...]:
    """Read shares such as 0.5,.9,95%; 0 is dense attention, which is measured anyway."""
    found = set()
    for word in (part.strip() for part in words.split(",")):
        try:
            share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            raise InputError(
                f"--sparsities {words}: {word!r} is no share of at least 0 and below 1, such as 0.5,0.9,0.95"
            )
        found.add(share)
    if not found - {0.0}:
        raise InputError(f"--sparsities {words}: leaves nothing to compare with dense attention; give one above 0")
    return tuple(sorted(found - {0.0}))
