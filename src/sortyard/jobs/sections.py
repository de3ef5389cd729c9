"""The section of a recipe that a verb needs."""

from sortyard.errors import InputError
from sortyard.recipe import AdaptSection, FinetuneSection, PretrainSection, Recipe


def pretrain_section(recipe: Recipe) -> PretrainSection:
    """Returns the recipe's pretrain section.

    Raises:
        InputError: There is none.
    """
    if recipe.pretrain is None:
        raise _missing(recipe, "pretrain")
    return recipe.pretrain


def adapt_section(recipe: Recipe) -> AdaptSection:
    """Returns the recipe's adapt section.

    Raises:
        InputError: There is none.
    """
    if recipe.adapt is None:
        raise InputError(f"the recipe {recipe.name} has no section adapt; let it extend the shipped recipe adapt")
    return recipe.adapt


def finetune_section(recipe: Recipe) -> FinetuneSection:
    """Returns the recipe's finetune section.

    Raises:
        InputError: There is none.
    """
    if recipe.finetune is None:
        raise _missing(recipe, "finetune")
    return recipe.finetune


def _missing(recipe: Recipe, name: str) -> InputError:
    return InputError(f"the recipe {recipe.name} has no section {name}; `sortyard new` writes one")
