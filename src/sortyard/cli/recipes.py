"""`sortyard recipes`: what is shipped."""

from sortyard.cli.output import Output, verb


@verb
def recipes(*, output: Output) -> None:
    """List the shipped recipes and what each needs."""
    from sortyard.recipe import shipped_recipes

    found = shipped_recipes()
    records = [{"name": item.name, "file": str(item.path), "summary": item.summary, **item.notes} for item in found]
    output.result({"recipes": records}, text="\n\n".join(_entry(record) for record in records))


def _entry(record: dict[str, str]) -> str:
    lines = [f"{record['name']:<10} {record['summary']}"]
    lines += [f"{'':<10} {key}: {record[key]}" for key in ("hardware", "time", "score") if key in record]
    return "\n".join(lines)
