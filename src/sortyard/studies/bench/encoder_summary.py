"""What follows from the cells of `bench encoder`: who is how much faster, what each factor gives, and how it grows."""

from collections.abc import Mapping, Sequence
from typing import Any

from sortyard.studies.bench.encoder_cases import FIXED, SHORT
from sortyard.studies.bench.encoder_sides import COMPILED
from sortyard.studies.bench.runner import Ratio, ratio_of

Json = dict[str, Any]
Cells = Mapping[str, Json]
OURS, LARGER = "sortyard", "sortyard-20"
# Who is compared with whom on short sentences; ours in the batches that `predict` makes.
SHORT_RIVALS = (
    ("bert-large@padded", "sortyard@tokens"),
    ("bert-large@dynamic", "sortyard@tokens"),
    ("bert-large@sorted", "sortyard@tokens"),
    ("bert-large@tokens", "sortyard@tokens"),
    ("modernbert-large@dynamic", "sortyard-20@tokens"),
    ("modernbert-large@tokens", "sortyard-20@tokens"),
    ("bert-base@dynamic", "sortyard@tokens"),
    ("bert-base@tokens", "sortyard@tokens"),
)
FIXED_RIVALS = (("bert-large", OURS), ("modernbert-large", LARGER), ("bert-base", OURS))
# One change after another, from BERT-large to ours: each factor is what one step gives.
SHORT_STEPS = (
    ("padding to the batch's longest, not to 128", "bert-large@padded", "bert-large@dynamic"),
    ("sorting by length", "bert-large@dynamic", "bert-large@sorted"),
    ("batches of equal tokens", "bert-large@sorted", "bert-large@tokens"),
    ("architecture (gated, rotary, no biases)", "bert-large@tokens", "sortyard-all-active@tokens"),
    ("fewer active parameters", "sortyard-all-active@tokens", "sortyard@tokens"),
    ("packed rows instead of equal tokens", "sortyard@tokens", "sortyard@packed"),
    ("compiled", "sortyard@tokens", f"sortyard{COMPILED}@tokens"),
)
FIXED_STEPS = (
    ("architecture (gated, rotary, no biases)", "bert-large", "sortyard-all-active"),
    ("fewer active parameters", "sortyard-all-active", "sortyard-dense-attention"),
    ("bucket attention", "sortyard-dense-attention", OURS),
    ("compiled", OURS, f"{OURS}{COMPILED}"),
)


def summarise(cells: Cells) -> Json:
    """Compare ours with the others in every cell, and take the gain apart."""
    cells = dict(sorted(cells.items(), key=lambda item: _place(item[1])))
    return {
        "rivals": {key: _compared(cell, _of(cell, SHORT_RIVALS, FIXED_RIVALS)) for key, cell in cells.items()},
        "factors": {key: _factors(cell) for key, cell in cells.items()},
        "precision": _precision(cells),
        "growth": {line: _growth(cells, line) for line in _fixed_lines(cells)},
    }


def _place(cell: Json) -> tuple[str, bool, int]:
    return cell["dtype"], cell["workload"] != SHORT, cell["length"]


def speed_ratio(base: Json, own: Json) -> Ratio:
    """How many times more real tokens a second one record shows than another; both must have been timed."""
    return ratio_of(
        [seconds / base["real_tokens"] for seconds in base["seconds"]],
        [seconds / own["real_tokens"] for seconds in own["seconds"]],
    )


def _of(cell: Json, short: Sequence[Any], fixed: Sequence[Any]) -> Sequence[Any]:
    return short if cell["workload"] == SHORT else fixed


def _compared(cell: Json, rivals: Sequence[tuple[str, str]]) -> list[Json]:
    pairs = [(rival, own) for rival, ours in rivals for own in (ours, _compiled(ours))]
    found = [{"rival": rival, "ours": own, "times_faster": _ratio(cell, rival, own)} for rival, own in pairs]
    return [one for one in found if one["times_faster"]]


def _compiled(side: str) -> str:
    model, at, batching = side.partition("@")
    return f"{model}{COMPILED}{at}{batching}"


def _factors(cell: Json) -> list[Json]:
    steps = _of(cell, SHORT_STEPS, FIXED_STEPS)
    found = [{"factor": factor, "times_faster": _ratio(cell, base, own)} for factor, base, own in steps]
    return [step for step in found if step["times_faster"]]


def _ratio(cell: Json, base: str, own: str) -> dict[str, float] | None:
    sides = cell["sides"]
    if not all(sides.get(name, {}).get("seconds") for name in (base, own)):
        return None
    return speed_ratio(sides[base], sides[own]).record()


def _precision(cells: Cells) -> Json:
    """Tokens a second in bf16 over those in fp32, of medians of two cells."""
    found: Json = {}
    for key, cell in cells.items():
        twin = cells.get(f"bf16/{cell['workload']}/{cell['length']}")
        if cell["dtype"] != "fp32" or twin is None:
            continue
        for name, record in cell["sides"].items():
            half = twin["sides"].get(name, {}).get("tokens_per_second")
            if half and record["tokens_per_second"]:
                found.setdefault(key.removeprefix("fp32/"), {})[name] = half / record["tokens_per_second"]
    return found


def _fixed_lines(cells: Cells) -> list[str]:
    return list(dict.fromkeys(f"{cell['dtype']}/{FIXED}" for cell in cells.values() if cell["workload"] == FIXED))


def _growth(cells: Cells, line: str) -> Json:
    """Of every side: tokens a second at the longest length over those at the shortest, and memory beside a line."""
    by_length = {cell["length"]: cell["sides"] for key, cell in cells.items() if key.rpartition("/")[0] == line}
    found: Json = {}
    for name in dict.fromkeys(name for sides in by_length.values() for name in sides):
        records = {n: sides[name] for n, sides in sorted(by_length.items()) if name in sides}
        speeds = {n: r["tokens_per_second"] for n, r in records.items() if r["tokens_per_second"]}
        peaks = {n: r["peak_extra_bytes"] for n, r in records.items() if r["peak_extra_bytes"]}
        if speeds:
            first, last = min(speeds), max(speeds)
            found[name] = {
                "shortest": first, "longest": last, "speed_kept": speeds[last] / speeds[first],
                "memory": _beside_the_line(peaks),
            }  # fmt: skip
    return found


def _beside_the_line(peaks: Mapping[int, int]) -> Json | None:
    """Peak memory at the longest length over the line through the two before it; None with fewer than three."""
    if len(peaks) < 3:
        return None
    first, second, last = sorted(peaks)[-3:]
    slope = (peaks[second] - peaks[first]) / (second - first)
    line = peaks[second] + slope * (last - second)
    return {"lengths": [first, second, last], "peak_bytes": peaks[last], "over_the_line": peaks[last] / line}
