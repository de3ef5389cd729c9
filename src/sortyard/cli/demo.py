"""`sortyard demo`: from nothing to a report, offline."""

from sortyard.cli.arguments import DryRun, OutFolder, RecipeAndOverrides, Seed, split_words
from sortyard.cli.output import Output, verb


@verb
def demo(
    words: RecipeAndOverrides = None,
    out: OutFolder = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    *,
    output: Output,
) -> None:
    """Train, evaluate and report a small model on Python's own documentation; needs no network."""
    from sortyard.recipe import load_recipe

    source, overrides = split_words(words, seed=seed)
    loaded = load_recipe(source or "demo", overrides=overrides)
    if dry_run:
        from sortyard.cli.planning import show_plan
        from sortyard.jobs.plan import plan_finetuning, plan_pretraining

        plans = [plan_pretraining(loaded.recipe), plan_finetuning(loaded.recipe)]
        show_plan(plans, recipe=loaded.recipe, output=output)
        return
    from sortyard.jobs.demo import run_demo

    found = run_demo(loaded, out=out, display=output.display())
    scores = "".join(f"\n  {name:<28} {value:.4f}" for name, value in found["scores"].items())
    output.result(found, text=f"{found['task']}, {found['metric']}{scores}\nreport: {found['report']}")
