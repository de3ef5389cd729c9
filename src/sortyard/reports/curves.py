"""The course of a training run: loss, scores, learning rate, speed and memory over the steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sortyard.reports.figures import MAX_POINTS, MAX_TABLE_ROWS, Figure, Json, Stack, Table, line, smoothed, thin
from sortyard.reports.run_data import Phase, Record
from sortyard.reports.wording import metric_name

SMOOTHED_FROM = 60
SCORE_COLORS = {"amber": "amber", "accent": "teal", "violet": "violet", "green": "green"}
NOT_SCORES = frozenset({"kind", "step", "loss", "perplexity", "num_targets", "num_examples", "seconds", "epoch"})


def curves_figure(phase: Phase, *, id: str) -> Figure | None:  # noqa: A002
    """Draw a run's curves over one step axis, with its resumptions and checkpoints; None without records."""
    if not phase.train:
        return None
    records, stack = thin(phase.train, limit=MAX_POINTS), Stack()
    stack.add("Loss", height=230, traces=_loss(records, phase.evals), axis={})
    if score_names := _score_names(phase.evals):
        stack.add(_scores_title(score_names), height=130, traces=_scores(phase.evals, score_names), axis={})
    if _has(records, "lr"):
        stack.add("Learning rate", height=90, traces=[_plain(records, "lr", "ochre")], axis={"tickformat": ".1~e"})
    if _has(records, "tokens_per_second"):
        speed = _plain(records, "tokens_per_second", "green")
        stack.add(
            "Throughput, tokens per second",
            height=110,
            traces=[speed],
            axis={"rangemode": "tozero", "tickformat": "~s"},
        )
    if _has(records, "memory_bytes"):
        memory = _plain(records, "memory_bytes", "violet", scale=1 / 2**30)
        stack.add("Peak memory, GiB", height=90, traces=[memory], axis={"rangemode": "tozero"})
    marks_text = _mark_events(stack, phase.events)
    height = stack.finish(x_title="optimizer steps")
    first, last = records[0], records[-1]
    return Figure(
        id=id, title="Training", height=height, data=tuple(stack.traces), layout=stack.layout,
        caption=_caption(records, phase.evals, marks_text),
        description=f"Curves over {last['step']} steps; the training loss goes from {_number(first.get('loss'))} "
        f"to {_number(last.get('loss'))}.",
        tables=tuple(_tables(phase)),
    )  # fmt: skip


def _has(records: Sequence[Record], key: str) -> bool:
    return any(record.get(key) is not None for record in records)


def _plain(records: Sequence[Record], key: str, color: str, *, scale: float = 1.0) -> Json:
    values = [None if record.get(key) is None else scale * record[key] for record in records]
    return line([record["step"] for record in records], values, name=key.replace("_", " "), color=color)


def _loss(records: Sequence[Record], evals: Sequence[Record]) -> list[Json]:
    """Training loss, faint with its running mean where there are many records, and the held-out loss."""
    key = "task_loss" if _has(records, "task_loss") else "loss"
    steps, values = [record["step"] for record in records], [record.get(key) for record in records]
    long = len(values) >= SMOOTHED_FROM
    traces = [
        line(steps, values, name="training", color="accent", width=1 if long else 2, opacity=0.4 if long else 1.0)
    ]
    if long:
        mean = smoothed(np.array(values, dtype=float), window=max(5, len(values) // 30))
        traces.append(line(steps, mean.tolist(), name="training, running mean", color="accent", width=2.5))
    held_out = [record for record in evals if record.get("loss") is not None]
    if held_out:
        x, y = [record["step"] for record in held_out], [record["loss"] for record in held_out]
        traces.append(line(x, y, name="held out", color="amber", mode="lines+markers"))
    return traces


def _score_names(evals: Sequence[Record]) -> list[str]:
    numeric = {key for record in evals for key, value in record.items() if isinstance(value, int | float)}
    return sorted(numeric - NOT_SCORES)[: len(SCORE_COLORS)]


def _scores_title(names: Sequence[str]) -> str:
    """Name the scores, and their colours where there are several."""
    if len(names) == 1:
        return f"Held-out {metric_name(names[0])}"
    colored = (f"{metric_name(name)} ({color})" for name, color in zip(names, SCORE_COLORS.values(), strict=False))
    return f"Held-out {', '.join(colored)}"


def _scores(evals: Sequence[Record], names: Sequence[str]) -> list[Json]:
    traces = []
    for name, color in zip(names, SCORE_COLORS, strict=False):
        shown = [record for record in evals if record.get(name) is not None]
        x, y = [record["step"] for record in shown], [record[name] for record in shown]
        traces.append(line(x, y, name=metric_name(name), color=color, mode="lines+markers"))
    return traces


def _mark_events(stack: Stack, events: Sequence[Record]) -> str:
    """Mark where the run was resumed or saved, and return the words that explain those marks there are."""
    looks = {
        "resume": {"color": "theme:amber", "width": 1.5, "dash": "dash"},
        "checkpoint": {"color": "theme:muted", "width": 1, "dash": "dot"},
    }
    words: list[str] = []
    for kind, look in looks.items():
        steps = sorted(
            {event["step"] for event in events if event.get("event") == kind and event.get("step") is not None}
        )
        for step in thin(steps, limit=40):
            stack.mark(step, look=look)
        if steps:
            where = ", ".join(f"{step:,}" for step in steps[:5])
            words.append(
                f"dashed lines mark where the run was resumed (step {where})"
                if kind == "resume"
                else f"dotted lines mark {len(steps)} checkpoint{'s' if len(steps) > 1 else ''}"
            )
    return "; ".join(words)


def _caption(records: Sequence[Record], evals: Sequence[Record], marks: str) -> str:
    parts = ["Teal: training loss" + (", faint, with its running mean" if len(records) >= SMOOTHED_FROM else "")]
    if _has(evals, "loss"):
        parts[0] += "; amber: loss on held-out data"
    return ". ".join([*parts, marks[:1].upper() + marks[1:]] if marks else parts) + "."


def _tables(phase: Phase) -> list[Table]:
    keys = [
        key
        for key in ("loss", "task_loss", "balance_loss", "lr", "grad_norm", "tokens_per_second", "memory_bytes")
        if _has(phase.train, key)
    ]
    tables = [_table("Training records", phase.train, keys)]
    numeric = [key for key in phase.evals[0] if key not in ("kind", "step")] if phase.evals else []
    if numeric:
        tables.append(_table("Evaluations during training", phase.evals, numeric))
    return tables


def _table(name: str, records: Sequence[Record], keys: Sequence[str]) -> Table:
    shown = thin(records, limit=MAX_TABLE_ROWS)
    rows = tuple((f"{record['step']:,}", *(_number(record.get(key)) for key in keys)) for record in shown)
    note = "" if len(shown) == len(records) else f" ({len(shown)} of {len(records)}, evenly spread)"
    return Table(name + note, ("step", *(key.replace("_", " ") for key in keys)), rows)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
