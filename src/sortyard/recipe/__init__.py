"""A run's configuration: one YAML file, validated as a whole; imports no torch."""

from sortyard.recipe.loading import (
    LoadedRecipe,
    changed_recipe,
    json_schema,
    load_recipe,
    parse_recipe,
    recipe_values,
    resolved_yaml,
    save_resolved,
)
from sortyard.recipe.sections import AdaptSection, FinetuneSection, PretrainSection, Recipe
from sortyard.recipe.shipped import ShippedRecipe, find_recipe, recipes_folder, shipped_recipes
from sortyard.recipe.template import commented_recipe

__all__ = [
    "AdaptSection",
    "FinetuneSection",
    "LoadedRecipe",
    "PretrainSection",
    "Recipe",
    "ShippedRecipe",
    "changed_recipe",
    "commented_recipe",
    "find_recipe",
    "json_schema",
    "load_recipe",
    "parse_recipe",
    "recipe_values",
    "recipes_folder",
    "resolved_yaml",
    "save_resolved",
    "shipped_recipes",
]
