"""What is trained beside what: a recipe, and recipes that differ from it in what is asked about."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sortyard.errors import InputError
from sortyard.recipe import Recipe, changed_recipe, recipe_values, recipes_folder

OURS, DENSE_ACTIVE, DENSE_TOTAL = "sparse", "dense-active", "dense-total"
BASE = "base"
ABLATIONS = "ablations"
_SHARED = ("seed", "tokenizer.", "pretrain.data.path", "pretrain.data.text_column")


@dataclass(frozen=True)
class Arm:
    """One side of a study.

    Attributes:
        name: Part of a folder's name.
        title: What it is, in a sentence.
        recipe: The whole recipe.
        is_extra: Whether it is trained after the others, with every seed.
    """

    name: str
    title: str
    recipe: Recipe
    is_extra: bool = False


def twin_arms(recipe: Recipe) -> tuple[Arm, ...]:
    """A sparse recipe and its two dense twins: of equal active parameters up to the gates, and of equal total ones.

    Args:
        recipe: With a `pretrain` section and experts.

    Raises:
        InputError: the recipe has no experts, so that it is its own twin.
    """
    model = recipe.model
    if model.num_experts < 2:
        raise InputError("model.num_experts is 1: the recipe is dense itself and has no twin; give it experts")

    def dense(num_experts: int) -> Recipe:
        width = num_experts * model.moe_intermediate_size
        changes = {"attention": "dense", "num_experts": 1, "intermediate_size": width}
        return recipe.model_copy(update={"model": type(model)(**model.model_dump() | changes)})

    return (
        Arm(OURS, "the recipe as it is", recipe),
        Arm(
            DENSE_ACTIVE, "dense attention, dense layers as wide as a token's experts", dense(model.num_experts_per_tok)
        ),
        Arm(
            DENSE_TOTAL, "dense attention, dense layers as wide as all experts together", dense(model.num_experts), True
        ),
    )


def ablation_arms(recipe: Recipe, *, source: Path, places: Sequence[Path]) -> tuple[Arm, ...]:
    """The recipe as it is, and with the changes of each file.

    Args:
        recipe: The base.
        source: Its file, for messages.
        places: YAML files that hold only what they change, or folders of them; empty = those that are shipped.

    Returns:
        The arms; the base is the first.

    Raises:
        InputError: a place does not exist or is empty, a file is no change of this recipe or changes what all arms
            share, or two have one name.
    """
    arms = {BASE: Arm(BASE, "the recipe as it is", recipe)}
    for path in _files(places or [recipes_folder() / ABLATIONS]):
        name = path.stem
        if name in arms:
            raise InputError(f"{path}: there is an arm called {name} already; give the file another name")
        changed = changed_recipe(recipe, source=source, changes=path)
        _check_shared(recipe, changed, path=path)
        arms[name] = Arm(name, _title(path), changed)
    return tuple(arms.values())


def _check_shared(recipe: Recipe, changed: Recipe, *, path: Path) -> None:
    """Refuse what would change nothing, as the study settles it for all arms alike."""
    before, after = recipe_values(recipe), recipe_values(changed)
    idle = sorted(key for key, value in after.items() if key.startswith(_SHARED) and value != before.get(key))
    if idle:
        raise InputError(
            f"{path}: changes {', '.join(idle)}, but all arms read the same prepared text with the same seeds; leave "
            "it out, or run two studies"
        )


def _files(places: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            files = sorted(place.glob("*.yaml"))
            if not files:
                raise InputError(f"--arms {place}: holds no .yaml file")
            found += files
        elif place.is_file():
            found.append(place)
        else:
            raise InputError(f"--arms {place}: there is no such file or folder")
    return found


def _title(path: Path) -> str:
    """The first comment of a file, else its name."""
    first = path.read_text(encoding="utf-8-sig").splitlines()[:1]
    return first[0].lstrip("# ").rstrip() if first and first[0].startswith("#") else path.stem
