"""`sortyard plan`: layouts of many GPUs, on paper."""

from typing import TYPE_CHECKING, Annotated

import typer

from sortyard.cli.arguments import RecipeAndOverrides, split_words
from sortyard.cli.output import Output, verb
from sortyard.errors import InputError

if TYPE_CHECKING:
    from sortyard.jobs.layouts.estimate import Estimate
    from sortyard.jobs.layouts.search import Found

LINK_SHARE = 0.7


@verb
def plan(
    words: RecipeAndOverrides = None,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs of the whole run.")] = 8,
    gpu: Annotated[str, typer.Option("--gpu", help="h100, h200, a100-80, a100-40 or l40s.")] = "h100",
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", help="GPUs that share a node.")] = 8,
    mfu: Annotated[float, typer.Option("--mfu", help="Share of the peak that arithmetic is taken to reach.")] = 0.3,
    top: Annotated[int, typer.Option("--top", help="How many layouts to show, the best of each pp, ep and tp.")] = 10,
    show_all: Annotated[bool, typer.Option("--all", help="Every layout with every schedule, fitting or not.")] = False,
    layout: Annotated[
        str, typer.Option("--try", help="Build one layout as each of its processes would, such as pp=2,tp=2.")
    ] = "",
    *,
    output: Output,
) -> None:
    """Estimate memory, messages, bubble and speed of layouts of a recipe's pretraining, best first; starts nothing."""
    from sortyard.jobs.dry_run import try_layout
    from sortyard.jobs.layouts.machines import make_cluster
    from sortyard.jobs.layouts.search import find_layouts, first_of_each
    from sortyard.jobs.layouts.table import assumptions
    from sortyard.jobs.layouts.work import read_work
    from sortyard.recipe import load_recipe

    source, overrides = split_words(words)
    if source is None:
        raise InputError("which recipe? Give a YAML file or a name that `sortyard recipes` lists")
    if layout:
        sizes = [f"parallel.{word.strip()}" for word in layout.split(",")]
        recipe = load_recipe(source, overrides=[*overrides, *sizes]).recipe
        report = try_layout(recipe, recipe.parallel, gpus)
        output.result(report.record(), text=report.text())
        return
    if top < 1:
        raise InputError(f"--top is {top}; give a number of layouts, at least 1, or --all")
    cluster = make_cluster(gpu, gpus=gpus, per_node=gpus_per_node, mfu=mfu, link_share=LINK_SHARE)
    recipe = load_recipe(source, overrides=overrides).recipe
    work = read_work(recipe)
    found = find_layouts(work, cluster)
    fitting = [estimate for estimate in found.layouts if estimate.fits]
    shown = found.layouts if show_all else first_of_each(fitting or found.layouts)[:top]
    taken = assumptions(work, cluster)
    record = {
        "is_estimate": True,
        "recipe": recipe.name,
        "gpus": gpus,
        "gpu": cluster.gpu.name,
        "tokens_per_step": work.tokens,
        "assumptions": taken,
        "num_possible": len(found.layouts),
        "num_fitting": len(fitting),
        "refused": found.refused,
        "layouts": [{"rank": rank, **estimate.record()} for rank, estimate in enumerate(shown, 1)],
    }
    title = (
        f"{recipe.name} on {gpus} {gpu}: {work.micro_batches} micro-batches of {work.rows:,} x {work.length:,} tokens"
    )
    notes = "\n".join(f"- {line}" for line in taken)
    output.result(record, text=f"{title}\n\n{_text(found, shown)}\n\nestimates, nothing was measured:\n{notes}")


def _text(found: "Found", shown: "list[Estimate]") -> str:
    from sortyard.jobs.layouts.table import memory_table, time_table

    fitting = sum(estimate.fits for estimate in found.layouts)
    counts = f"{len(found.layouts)} layouts are possible, {fitting} fit; {sum(found.refused.values())} are not possible"
    reasons = [f"  {count:>4}  {reason}" for reason, count in found.refused.items()]
    if not shown:
        return "\n".join([counts, *reasons])
    hint = "" if fitting else "none fits; these need the least memory\n"
    return (
        f"{hint}memory of a GPU\n{memory_table(shown)}\n\n"
        f"a step: GB that a GPU sends / seconds of it, and time (dp is replicas x shards)\n{time_table(shown)}\n\n"
        + "\n".join([counts, *reasons])
    )
