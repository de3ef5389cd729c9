"""What --dry-run prints."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sortyard.cli.output import Output

if TYPE_CHECKING:
    from sortyard.jobs.plan import Plan
    from sortyard.recipe import Recipe


def show_plan(plans: "Sequence[Plan]", *, recipe: "Recipe", output: Output) -> None:
    """Prints the cost of the phases and the resolved recipe."""
    from sortyard.recipe import resolved_yaml

    text = "\n".join([*(plan.text() for plan in plans), "", resolved_yaml(recipe).rstrip(), "", "nothing was started"])
    record = {"plan": [plan.record() for plan in plans], "recipe": recipe.model_dump(mode="json")}
    output.result(record, text=text)
