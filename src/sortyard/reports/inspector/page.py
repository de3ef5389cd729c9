"""The inspector's page: alive beside its server, or frozen with its answers in it."""

import base64
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from sortyard.reports.inspector.inspector import Inspector

Json = dict[str, Any]
FROZEN_BYTES = 1_000_000  # beside the plotting library's 4.8 MB, so that the page stays below 6 MB
FIRST_BYTES, OTHER_BYTES = 350_000, 60_000  # of the head shown first, and of any other
MAX_ROW_VALUES = 1_000_000


@dataclass(frozen=True)
class Question:
    """What is looked at.

    Attributes:
        text: the text.
        before: what stands before it.
        other: what stands before it the second time; None reads it once.
        layer: the layer shown first; None takes the middle one of those with buckets.
        head: the head shown first; None takes the one whose exact keys hold the median mass.
    """

    text: str
    before: str = ""
    other: str | None = None
    layer: int | None = None
    head: int | None = None


def live_page(inspector: Inspector) -> str:
    """Return the page that asks a server."""
    return _render({"about": inspector.about(), "frozen": None})


def frozen_page(inspector: Inspector, question: Question) -> tuple[str, Json]:
    """Return a page that holds the answers for one text, and what is in it.

    Heads are put in, the one shown first before all others, until there is no more room; of a long text only every
    second, fourth, ... query is kept, of the head shown first more of them. The page says what is missing.

    Args:
        inspector: answers.
        question: the text, and what is shown first.

    Raises:
        InputError: the text, the layer or the head cannot be used.
    """
    looked = inspector.look(question.text, before=question.before, other=question.other)
    layer, head = _first(inspector, question)
    units: dict[str, str] = {}
    room = FROZEN_BYTES - len(_packed(looked))
    for side, at, number in _order(inspector, question, layer=layer, head=head):
        most = FIRST_BYTES if (at, number) == (layer, head) else OTHER_BYTES
        unit = _unit(inspector, question, side=side, layer=at, head=number, most=most)
        if len(unit) > room:
            break
        units[f"{side}|{at}|{number}"] = unit
        room -= len(unit)
    frozen = {
        "text": question.text, "before": question.before, "other": question.other, "layer": layer, "head": head,
        "look": _packed(looked), "units": units,
    }  # fmt: skip
    found = {"tokens": len(looked["sides"][0]["tokens"]), "heads": len(units), "layer": layer, "head": head}
    return _render({"about": inspector.about(), "frozen": frozen}), found


def _first(inspector: Inspector, question: Question) -> tuple[int | None, int | None]:
    layers = inspector.bucket_layers()
    layer = question.layer if question.layer is not None or not layers else layers[len(layers) // 2]
    if layer is None:
        return None, None
    median = inspector.median_head(question.text, before=question.before, layer=layer)
    return layer, median if question.head is None else question.head


def _order(
    inspector: Inspector, question: Question, *, layer: int | None, head: int | None
) -> Iterator[tuple[int, int, int]]:
    """Name side, layer and head: the chosen ones, the layer's other heads, then the other layers'."""
    if layer is None or head is None:
        return
    sides = (0,) if question.other is None else (0, 1)
    num_heads = inspector.about()["heads"]
    layers = sorted(inspector.bucket_layers(), key=lambda one: one != layer)
    for at in layers if layer in layers else [layer]:
        for number in sorted(range(num_heads), key=lambda one: one != head) if head < num_heads else [head]:
            yield from ((side, at, number) for side in sides)


def _unit(inspector: Inspector, question: Question, *, side: int, layer: int, head: int, most: int) -> str:
    """Pack a head's picture and its queries; of a long text as many as there is room for."""
    before = question.before if side == 0 else question.other or ""
    picture = inspector.map(question.text, before=before, layer=layer, head=head)
    length, every = picture["size"], 1
    while length * -(-length // every) > MAX_ROW_VALUES:
        every *= 2
    rows = {
        query: inspector.row(question.text, before=before, layer=layer, head=head, query=query)
        for query in range(0, length, every)
    }
    while len(unit := _packed({"map": picture, "rows": rows})) > most and len(rows) > 1:
        rows = dict(list(rows.items())[::2])
    return unit


def _packed(content: Json) -> str:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _render(data: Json) -> str:
    from plotly.offline import get_plotlyjs

    loader = PackageLoader("sortyard.reports")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.filters |= {"embedded": htmlsafe_json_dumps, "verbatim": Markup}

    def source(name: str) -> str:
        return loader.get_source(templates, name)[0]

    return templates.get_template("inspector.html.j2").render(
        data=data,
        version=version("sortyard"),
        css=source("report.css") + source("inspector.css"),
        js=source("inspector.js"),
        plotly_js=get_plotlyjs(),
    )
