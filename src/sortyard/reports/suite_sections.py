"""What `sortyard eval` adds to a report: GLUE, long documents, and perplexity by domain."""

from collections.abc import Iterable, Sequence
from typing import Any

from sortyard.reports.figures import Table
from sortyard.reports.run_data import Evaluation, Record
from sortyard.reports.sections import Section
from sortyard.reports.wording import count, duration, metric_name

TITLES = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI",
    "rte": "RTE", "wnli": "WNLI", "imdb": "IMDB", "newsgroups": "20 Newsgroups", "novels": "novels",
    "listops": "ListOps",
}  # fmt: skip
MISSING = "-"
PROTOCOLS = {
    "one": "one setting for all tasks",
    "each": "settings of each task's own",
}


def suite_sections(evaluations: Iterable[Evaluation]) -> list[Section | None]:
    """The sections of those results that are no scores of one task."""
    results = {evaluation.name: evaluation.result for evaluation in evaluations}
    return [
        glue_section(results["glue"]) if "glue" in results else None,
        long_section(results["long"]) if "long" in results else None,
        domains_section(results["perplexity"]) if "perplexity" in results else None,
    ]


def glue_section(result: Record) -> Section:
    """Every task's median and spread, then the same beside published figures, marked as such."""
    return Section(
        id="glue", title="GLUE", intro=_glue_intro(result), tables=(_glue_scores(result), _glue_beside(result))
    )


def glue_verdict(result: Record) -> str:
    """Say the average and which tasks it is over."""
    average = result["average"]
    if average is None:
        return "No task was measured that an average counts."
    names = ", ".join(TITLES[name] for name in average["tasks"])
    without = ", ".join(TITLES[name] for name in average["without"])
    text = (
        f"Average {_percent(average['score'])} over {_tasks(len(average['tasks']))}: {names} (WNLI is never counted)."
    )
    return text + (f" Without {without}, so it is no GLUE average." if without else "")


def long_section(result: Record) -> Section:
    """Accuracy by length, with time and sparsity."""
    lengths = [str(length) for length in result["lengths"]]
    scores, cost = [], []
    for name, task in result["tasks"].items():
        cells = task.get("cells", {})
        scores.append((_title(name), *(_long_score(cells.get(length), task) for length in lengths)))
        cost += [_long_cost(name, length, cells[length]) for length in lengths if cells.get(length, {}).get("measured")]
    tables = [Table("Accuracy in percent, by tokens read of each document", ("documents", *lengths), tuple(scores))]
    if cost:
        header = (
            "documents",
            "tokens",
            "seeds",
            "lowest to highest",
            "steps",
            "training",
            "tokens read",
            "cut",
            "sparsity",
        )
        tables.append(Table("What it took", header, tuple(cost)))
    for name, task in result["tasks"].items():
        if task.get("notes"):
            tables.append(Table(f"{_title(name)}: the documents", ("note",), tuple((note,) for note in task["notes"])))
    return Section(id="long", title="Long documents", intro=_long_intro(result), tables=tuple(tables))


def domains_section(result: Record) -> Section:
    """Loss and perplexity by domain, and over all of them."""
    rows = [*result["domains"], result["total"]]
    table = Table(
        "By domain",
        ("text", "loss", "perplexity", "accuracy", "targets"),
        tuple(
            (
                row["name"],
                f"{row['loss']:.4f}",
                MISSING if row["perplexity"] is None else f"{row['perplexity']:.4g}",
                f"{_percent(row['accuracy'])} %",
                f"{row['num_targets']:,}",
            )
            for row in rows
        ),
    )
    kind = "the next token" if result["objective"] == "causal_lm" else "masked tokens, with the same masks every time"
    return Section(
        id="perplexity",
        title="Perplexity by domain",
        intro=f"How well the model predicts {kind}; loss in nats per target. The total counts every target alike.",
        tables=(table,),
    )


def _glue_intro(result: Record) -> str:
    seeds = len(result["seeds"])
    changes = f", changed by {' '.join(result['changes'])}" if result["changes"] else ""
    how = f"Fine-tuned by {PROTOCOLS[result['protocol']]}{changes}; {_seeds(seeds)}, on {result.get('date', 'no day')}."
    return f"{glue_verdict(result)} {how} Scores are of the development sets, in percent."


def _tasks(number: int) -> str:
    return f"{number} tasks" if number > 1 else "1 task"


def _seeds(number: int) -> str:
    return f"the median of {number} seeds" if number > 1 else "one seed"


def _glue_scores(result: Record) -> Table:
    header = ("task", "score", "lowest to highest", "metrics", "training examples", "core time", "remark")
    return Table(
        "Measured", header, tuple(_glue_row(name, task, result) for name, task in result["tasks"].items())
    )  # fmt: skip


def _glue_row(name: str, task: Record, result: Record) -> tuple[str, ...]:
    if not task["measured"]:
        return (_title(name), MISSING, "", "", "", "", f"not measured: {task['why_not']}")
    metrics = ", ".join(f"{metric_name(each)} {_percent(task['median'][each])}" for each in task["metrics"])
    notes = list(task["notes"])
    if len(task["seeds"]) < len(result["seeds"]):
        notes.append(f"{len(task['seeds'])} of {len(result['seeds'])} seeds")
    return (
        _title(name),
        _percent(task["score"]),
        f"{_percent(task['low'])} to {_percent(task['high'])}" if len(task["seeds"]) > 1 else "",
        metrics,
        f"{task['train_examples']:,}",
        MISSING if task["processor_seconds"] is None else duration(task["processor_seconds"]),
        "; ".join(notes),
    )


def _glue_beside(result: Record) -> Table:
    names = list(result["tasks"])
    average = result["average"]
    own = (
        f"{result['model']} (measured)",
        MISSING,
        *(_percent(task["score"]) if task["measured"] else MISSING for task in result["tasks"].values()),
        MISSING if average is None or average["without"] else _percent(average["score"]),
        MISSING if average is None else _percent(average["score"]),
        "this run",
    )
    rows = [own, *(_published_row(row, names) for row in result["published"])]
    header = ("model", "parameters", *map(_title, names), "average", "same tasks", "source")
    return Table("Beside published figures, which were measured elsewhere and by other settings", header, tuple(rows))


def _published_row(row: Record, names: Sequence[str]) -> tuple[str, ...]:
    size = row["parameters_millions"]
    return (
        f"{row['name']} (published)",
        MISSING if size is None else count(size * 1e6),
        *(_fixed(row["scores"].get(name)) for name in names),
        _fixed(row["average"]),
        _fixed(row["average_of_same_tasks"]),
        row["source"],
    )


def _long_intro(result: Record) -> str:
    return (
        "Fine-tuned at each length for the same number of steps, on the same documents: "
        f"{_seeds(len(result['seeds']))}. "
        "A document is cut at the length (what it took: mean tokens read, and the share of documents that are cut); "
        "ListOps has expressions made for each length."
    )


def _long_score(cell: Record | None, task: Record) -> str:
    if cell is None or not cell["measured"]:
        return str((cell or task).get("why_not", MISSING))
    return _percent(cell["score"])


def _long_cost(name: str, length: str, cell: Record) -> tuple[str, ...]:
    return (
        _title(name),
        length,
        str(len(cell["seeds"])),
        f"{_percent(cell['low'])} to {_percent(cell['high'])}",
        str(cell["steps"]),
        duration(cell["seconds"]),
        f"{cell['mean_tokens']:,.0f}",
        f"{100 * cell['share_cut']:.0f} %",
        MISSING if cell["sparsity"] is None else f"{100 * cell['sparsity']:.0f} %",
    )


def _title(name: str) -> str:
    return TITLES.get(name, name)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _fixed(value: Any) -> str:
    return MISSING if value is None else f"{value:.1f}"
