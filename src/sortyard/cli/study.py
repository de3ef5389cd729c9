"""`sortyard study`: experiments that show what a part of the model is worth."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sortyard.cli.arguments import named_paths
from sortyard.cli.bench_values import Fresh, Out, Threads, read_words, show_result, thread_count
from sortyard.cli.output import Output, verb
from sortyard.cli.study_claims import claims
from sortyard.cli.study_sparsity import sparsity
from sortyard.cli.study_trained import ablation, twin
from sortyard.errors import InputError

app = typer.Typer(help="Find out what a part of the model is worth, on this machine.", no_args_is_help=True)

STEPS, QUICK_STEPS = "350,1000", "60"
TEXT_STEPS, LABEL_STEPS, QUICK_NATURAL_STEPS = "1000", "1000", "10"
SEEDS, QUICK_SEEDS = 5, 2
MOST_STEPS = 10_000_000

Sources = tuple[tuple[str, str], ...]

app.command("claims")(claims)
app.command("twin")(twin)
app.command("sparsity")(sparsity)
app.command("ablation")(ablation)


@app.command("gates")
@verb
def gates(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=PATH",
            help="A source of text for the mixed-text task; give two at least. Any text that pretraining reads.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="NAME=PATH",
            help="A table with text and label for the mixed-labels task; give two at least.",
            show_default=False,
        ),
    ] = None,
    arms: Annotated[
        str | None, typer.Option("--arms", help="Only these, such as context,static.", show_default=False)
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help=f"Runs of an arm: {SEEDS}; quick {QUICK_SEEDS}.")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps", help=f"Training steps of the latent-mode task: {STEPS}; 0 = leave it out.", show_default=False
        ),
    ] = None,
    text_steps: Annotated[
        str | None,
        typer.Option("--text-steps", help=f"Training steps of the mixed-text task: {TEXT_STEPS}.", show_default=False),
    ] = None,
    label_steps: Annotated[
        str | None,
        typer.Option(
            "--label-steps", help=f"Training steps of the mixed-labels task: {LABEL_STEPS}.", show_default=False
        ),
    ] = None,
    heads: Annotated[int, typer.Option("--heads", min=1, help="Attention heads of the latent-mode model.")] = 4,
    lr: Annotated[float, typer.Option("--lr", help="Highest learning rate of the latent-mode model.")] = 3e-3,
    threads: Threads = None,
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few steps and seeds; takes about a minute.")] = False,
    fresh: Fresh = False,
    *,
    output: Output,
) -> None:
    """What a gate is worth that reads the context, beside other gates and dense layers, paired over seeds."""
    texts, labelled = _sources("--data", data), _sources("--labels", labels)
    natural = QUICK_NATURAL_STEPS if quick else None
    steps_ = _steps("--steps", steps, usual=QUICK_STEPS if quick else STEPS)
    text_steps_ = _natural_steps("--text-steps", text_steps, usual=natural or TEXT_STEPS, of=("--data", texts))
    label_steps_ = _natural_steps("--label-steps", label_steps, usual=natural or LABEL_STEPS, of=("--labels", labelled))
    if not (steps_ or text_steps_ or label_steps_):
        raise InputError("--steps 0: leaves nothing to train; give --data or --labels, or some steps")
    _check_learner(heads, lr)
    from sortyard.studies.bench.results import result_folder
    from sortyard.studies.gates.arms import ARMS
    from sortyard.studies.gates.study import GatesPlan, run_gates

    known = tuple(ARMS)
    chosen = known if arms is None else read_words("--arms", arms, known=known)
    plan = GatesPlan(
        texts=texts, labelled=labelled, arms=tuple(arm for arm in known if arm in chosen),
        seeds=seeds or (QUICK_SEEDS if quick else SEEDS), steps=steps_, heads=heads, lr=lr, text_steps=text_steps_,
        label_steps=label_steps_, threads=thread_count(threads),
    )  # fmt: skip
    folder = result_folder(out)
    result, text = run_gates(plan, folder=folder, fresh=fresh, say=output.say)
    show_result(result, text, folder=folder, output=output)


def _sources(option: str, words: Sequence[str] | None) -> Sources:
    found = named_paths(option, words)
    if len(found) == 1:
        raise InputError(f"{option} {words[0] if words else ''}: one source is no mixture; give two at least")
    return tuple(found.items())


def _natural_steps(option: str, words: str | None, *, usual: str, of: tuple[str, Sources]) -> tuple[int, ...]:
    """Read the steps of a task that is trained only where its sources are given."""
    name, sources = of
    if not sources and words is not None:
        raise InputError(f"{option} {words}: there is nothing to train on; give {name} NAME=PATH, twice or more")
    return _steps(option, words, usual=usual) if sources else ()


def _steps(option: str, words: str | None, *, usual: str) -> tuple[int, ...]:
    found = []
    for word in (usual if words is None else words).split(","):
        digits = word.strip()
        count = int(digits) if digits.isascii() and digits.isdigit() else -1
        if not 0 <= count <= MOST_STEPS:
            raise InputError(f"{option} {words}: expected numbers of steps such as 350,1000, or 0")
        found.append(count)
    return tuple(sorted({count for count in found if count}))


def _check_learner(heads: int, lr: float) -> None:
    from sortyard.studies.gates.latent_mode import HIDDEN_SIZE

    if HIDDEN_SIZE % heads:
        fitting = ", ".join(str(count) for count in range(1, HIDDEN_SIZE + 1) if HIDDEN_SIZE % count == 0)
        raise InputError(f"--heads {heads}: must divide the model's width {HIDDEN_SIZE}; choose one of {fitting}")
    if not 0 < lr <= 1:
        raise InputError(f"--lr {lr:g}: expected a learning rate above 0 and at most 1, such as 0.003")
