"""What follows from the cells of `bench training`: each claim of the seed beside what this machine shows."""

from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]
Cells = Mapping[str, Json]
PRECISION_GAIN, MEMORY_SAVED, MORE_TIME, EFFICIENCY_GAIN = 2.3, 0.35, 0.30, 1.4
EQUAL = 1e-12


def summarise(cells: Cells) -> Json:
    """Set every side beside the first of its cell, and the claims beside the sides that they are about."""
    return {
        "compared": {key: _compared(cell) for key, cell in cells.items()},
        "claims": [claim for key, cell in cells.items() for claim in _claims(key, cell)],
    }


def _compared(cell: Json) -> Json:
    """For each side but the first: time, memory and real tokens a second against the first."""
    (_, base), *others = cell["sides"].items()
    if not base["seconds"]:
        return {}
    return {name: _against(base, own) for name, own in others if own["seconds"]}


def _against(base: Json, own: Json) -> Json:
    time = own["times_as_long"]["median"]
    whole = base["state_bytes"] + base["peak_extra_bytes"]
    return {
        "times_as_long": time,
        "times_faster": 1 / time,
        "times_the_real_tokens_per_second": own["real_tokens"] / base["real_tokens"] / time,
        "memory_saved": 1 - own["peak_extra_bytes"] / base["peak_extra_bytes"],
        "memory_saved_of_all": 1 - (own["state_bytes"] + own["peak_extra_bytes"]) / whole,
    }


def _claims(key: str, cell: Json) -> Iterator[Json]:
    found = _compared(cell)
    match cell["topic"]:
        case "precision":
            for name in ("bf16", "fp16"):
                gain = found[name]["times_faster"] if name in found else None
                yield _claim("C8", key, f"{name} is {PRECISION_GAIN} times as fast as fp32", gain, PRECISION_GAIN)
        case "checkpointing":
            for name, one in found.items():
                saved, more = one["memory_saved"], one["times_as_long"] - 1
                words = f"{name}: {MEMORY_SAVED:.0%} less memory, at most {MORE_TIME:.0%} more time"
                holds = saved >= MEMORY_SAVED and more <= MORE_TIME
                yield {"claim": "C9", "cell": key, "words": words, "measured": saved, "more_time": more, "holds": holds}
        case "accumulation":
            error = cell["gradients"]["relative_error"]
            words = "gradients in portions are those of one batch (relative error in float64)"
            yield {"claim": "C10", "cell": key, "words": words, "measured": error, "holds": error <= EQUAL}
        case "twin":
            gain = found["sparse"]["times_faster"] if "sparse" in found else None
            words = f"{EFFICIENCY_GAIN} times as fast a step as the dense twin's; what it learns is not measured"
            yield {"claim": "C11", "cell": key, "words": words, "measured": gain, "holds": None}


def _claim(claim: str, key: str, words: str, gain: float | None, wanted: float) -> Json:
    holds = None if gain is None else gain >= wanted
    return {"claim": claim, "cell": key, "words": words, "measured": gain, "holds": holds}
