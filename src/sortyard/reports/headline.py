"""The top of a report: what was trained, how it did against simple baselines, and the run's size."""

from collections.abc import Iterable
from dataclasses import dataclass

from sortyard.reports.run_data import Phase, Record, RunData
from sortyard.reports.wording import Bar, bars, count, duration, metric_name, moment, size, verdict


@dataclass(frozen=True)
class Headline:
    """The words and bars at the top."""

    eyebrow: str
    title: str
    verdict: str
    bars: tuple[Bar, ...] = ()
    bars_note: str = ""


@dataclass(frozen=True)
class Fact:
    """One tile: a name, a value and a remark."""

    name: str
    value: str
    note: str = ""


def headline(data: RunData) -> Headline:
    """Return the page's top: the comparison where there is one, else the evaluation, else the course of the loss."""
    eyebrow = "Pretraining and fine-tuning" if len(data.phases) > 1 else _kind(data.final)
    results = [evaluation.result for evaluation in data.final.evaluations if "metrics" in evaluation.result]
    if data.comparison:
        return _from_comparison(data.comparison, results=results, eyebrow=eyebrow)
    if results:
        return _from_result(results[0], eyebrow=eyebrow)
    return Headline(eyebrow=eyebrow, title=data.path.resolve().name, verdict=_course(data.final))


def facts(data: RunData) -> tuple[Fact, ...]:
    """Return the tiles: parameters, tokens, time, memory, device and date, those that are known."""
    return tuple(_facts(data))


def _facts(data: RunData) -> Iterable[Fact]:
    final, lasts = data.final, [phase.last for phase in data.phases]
    if final.parameters:
        counts = final.parameters
        yield Fact("Parameters", count(counts.total), f"{count(counts.embedding)} of them embeddings")
        yield Fact("Active per token", count(counts.active), f"{counts.active / counts.total:.0%} of all")
    if tokens := sum(last.get("tokens") or 0 for last in lasts):
        yield Fact("Tokens seen", count(tokens), f"in {sum(last.get('step', 0) for last in lasts):,} steps")
    if seconds := sum(last.get("seconds") or 0 for last in lasts):
        yield Fact("Training time", duration(seconds), f"{tokens / seconds:,.0f} tokens/s" if tokens else "")
    if memory := max((record.get("memory_bytes") or 0 for phase in data.phases for record in phase.train), default=0):
        yield Fact("Peak memory", size(memory))
    sparsities = [
        (last["sparsity"], phase) for last, phase in zip(lasts, data.phases, strict=True) if "sparsity" in last
    ]
    if sparsities:
        sparsity, phase = max(sparsities, key=lambda pair: pair[0] or 0.0)
        where = f", {_kind(phase).removesuffix(' run').lower()}" if len(data.phases) > 1 else ""
        yield Fact("Attention sparsity", f"{sparsity or 0.0:.0%}", f"pairs not computed{where}")
    machine = final.environment.get("machine") or {}
    if machine.get("device"):
        yield Fact("Device", str(machine["device"]), _processor(machine))
    if final.events:
        yield Fact("Date", *moment(data.phases[0].events[0]["time"]))


def _processor(machine: Record) -> str:
    parts = [str(machine["cpu"])] if machine.get("cpu") else []
    return ", ".join([*parts, f"{machine['cores']} cores"] if machine.get("cores") else parts)


def _kind(phase: Phase) -> str:
    if phase.is_adapting:
        return "Adapting run"
    return "Fine-tuning run" if phase.is_finetuning else "Pretraining run"


def _from_comparison(comparison: Record, *, results: list[Record], eyebrow: str) -> Headline:
    model, others = comparison["model"], [(row["name"], row["accuracy"]) for row in comparison["baselines"]]
    matching = next((row for row in results if abs(row["metrics"].get("accuracy", -1) - model["accuracy"]) < 1e-9), {})
    interval = matching.get("interval") or {} if matching.get("main_metric") == "accuracy" else {}
    n, classes = matching.get("num_examples"), comparison.get("classes")
    number = len(classes) if isinstance(classes, list) else classes
    return Headline(
        eyebrow=f"{eyebrow} · {number} classes" if number else eyebrow,
        title=str(comparison["task"]),
        verdict=_verdict("accuracy", model["accuracy"], others, interval=interval, n=n),
        bars=tuple(
            bars(metric="accuracy", model=(model["name"], model["accuracy"]), baselines=others, interval=interval)
        ),
        bars_note=_bars_note("accuracy", interval=interval, n=n),
    )


def _from_result(result: Record, *, eyebrow: str) -> Headline:
    main, interval, n = result["main_metric"], result.get("interval") or {}, result["num_examples"]
    others = [(row["name"], row["metrics"][main]) for row in result.get("baselines") or []]
    value = result["metrics"][main]
    return Headline(
        eyebrow=eyebrow,
        title=str(result["task"]),
        verdict=_verdict(main, value, others, interval=interval, n=n),
        bars=tuple(bars(metric=main, model=("the model", value), baselines=others, interval=interval)),
        bars_note=_bars_note(main, interval=interval, n=n),
    )


def _verdict(metric: str, value: float, others: list[tuple[str, float]], *, interval: Record, n: int | None) -> str:
    if not others:
        return "No baseline was scored beside the model, so the figure below has nothing to stand against."
    return verdict(metric=metric, model=value, baselines=others, interval=interval, n=n)


def _bars_note(metric: str, *, interval: Record, n: int | None) -> str:
    words = metric_name(metric)
    note = words[:1].upper() + words[1:] + (f" on {n:,} examples" if n else "") + ", scale 0 to 1"
    if not interval:
        return note + "."
    return f"{note}. The thin line on the model's bar is its {100 * interval['level']:.0f} % interval."


def _course(phase: Phase) -> str:
    """Say in a sentence how a language model's loss went, or how a model that adapted follows its teacher."""
    if phase.is_adapting and len(phase.evals) > 1:
        return _following(phase.evals[0], phase.evals[-1])
    held_out = [record for record in phase.evals if record.get("loss") is not None]
    if held_out:
        first, last = held_out[0], held_out[-1]
        right = (
            f" It fills in {100 * last['accuracy']:.1f} % of the held-out targets correctly."
            if last.get("accuracy")
            else ""
        )
        if first is last:
            return f"The held-out loss is {last['loss']:.3f} after {last['step']:,} steps.{right}"
        start, end = (f"{record['loss']:.3f} (step {record['step']:,})" for record in (first, last))
        return f"The held-out loss went from {start} to {end}.{right}"
    losses = [record for record in phase.train if record.get("loss") is not None]
    if not losses:
        return "The run has recorded no loss yet."
    first, last = losses[0], losses[-1]
    return f"The training loss went from {first['loss']:.3f} to {last['loss']:.3f} in {last['step']:,} steps."


def _following(first: Record, last: Record) -> str:
    start, end = (f"{100 * record['relative_error']:.2g} %" for record in (first, last))
    cosines = f"{first['token_cosine']:.4f} to {last['token_cosine']:.4f}"
    return (
        f"On held-out text its token states were {start} off its teacher's before and are {end} off after "
        f"{last['step']:,} steps; their mean cosine went from {cosines}."
    )
