"""A run's recipe when it is resumed: the one it was begun with, unless each change is allowed by name."""

from collections.abc import Sequence
from typing import Any

from sortyard.errors import InputError
from sortyard.jobs.paths import absolute
from sortyard.recipe import Recipe, load_recipe, parse_recipe, recipe_values, resolved_yaml
from sortyard.runs.folder import RunFolder


def settled_recipe(run: RunFolder, *, overrides: Sequence[str], allow: Sequence[str]) -> Recipe:
    """Returns the recipe to go on with, and makes it the run's own.

    A change may come from the command line or from an edited resolved.yaml; both are held against the recipe that the
    run was last trained with.

    Args:
        run: A run that `create_run` made.
        overrides: Words like `pretrain.loop.steps=2000`.
        allow: Keys that may differ, such as `pretrain.loop.steps`.

    Raises:
        InputError: A value differs that is not allowed to, or the other way round; nothing is changed then.
    """
    recipe = load_recipe(run.resolved, overrides=overrides).recipe
    if overrides:
        recipe = absolute(recipe)
    accepted = run.accepted_recipes()
    before = parse_recipe(accepted[-1], file=str(run.accepted)) if accepted else load_recipe(run.resolved).recipe
    old, new = recipe_values(before), recipe_values(recipe)
    changes = {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}
    _check(changes, allow=allow, where=str(run.path))
    unknown = [key for key in allow if key not in {**old, **new}]
    if unknown:
        raise InputError(f"--allow {unknown[0]}: the recipe of {run.path} has no such key")
    text = resolved_yaml(recipe)
    if not accepted or changes or text != accepted[-1]:
        run.accept_recipe(text)
    if changes:
        run.append_event("recipe", changes={key: list(values) for key, values in changes.items()})
    return recipe


def _check(changes: dict[str, tuple[Any, Any]], *, allow: Sequence[str], where: str) -> None:
    # The layout of the processes changes nothing of what is computed.
    refused = {key: values for key, values in changes.items() if key not in allow and not key.startswith("parallel.")}
    if refused:
        lines = [f"  {key}: {before!r} -> {after!r}" for key, (before, after) in refused.items()]
        words = " ".join(f"--allow {key}" for key in refused)
        raise InputError(
            f"{where}: the recipe is not the one that this run was trained with so far:\n" + "\n".join(lines) + "\n"
            "What is trained from here on would be another run than the one that was begun. Put the values back, or go "
            f"on with them by {words}"
        )
