"""The claims about time and memory, read from what the benchmarks wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sortyard.studies.claims.claim_list import LOG_LINEAR_SLOPE
from sortyard.studies.claims.findings import (
    FAILS,
    HOLDS,
    Finding,
    in_parts,
    median,
    missing,
    percent,
    read_json,
)

Json = dict[str, Any]
_SLOPE_ALLOWED, _SAVING_ALLOWED = 0.15, 0.05
_ENOUGH_LENGTHS = 3
CLAIMED_SAVING, CLAIMED_SPEED, CLAIMED_PRECISION, CLAIMED_CHECKPOINTING = 0.42, 1.8, 2.3, 0.35
_GRADIENTS_ALIKE = 1e-12
_BATCHES = {"padded": "padded to 128", "dynamic": "batches as they come", "sorted": "sorted by length"}


def attention_cost(work: Path) -> Finding:
    """C1: slopes of time and memory over the length."""
    found = read_json(work / "C1" / "attention" / "attention.json")
    if found is None:
        return missing("bench attention has not run")
    slopes = _slopes(found["summary"]["lines"])
    tree = next((name for name in found["summary"]["sides"] if name.startswith("tree")), "")
    own = {kind: slope for kind, slope in slopes.items() if kind[1] == tree}
    if not any(kind[2] == "time" for kind in own):
        return missing("too few lengths were measured for a slope")
    parts = [slope <= LOG_LINEAR_SLOPE + _SLOPE_ALLOWED for slope in own.values()]
    return Finding(
        verdict=HOLDS if all(parts) else FAILS,
        measured="; ".join(f"{_line(kind)} n^{slope:.2f}" for kind, slope in own.items()),
        spread=_lengths(found),
        controls=tuple(f"{kind[1]}, {_line(kind)} n^{slope:.2f}" for kind, slope in slopes.items() if kind[1] != tree),
        note="dense attention by a fused kernel needs no n x n memory either",
        values={f"{direction}/{side}/{what}": slope for (direction, side, what), slope in slopes.items()},
    )


def dynamic_buckets(work: Path) -> Finding:
    """C2: memory that buckets save by following the length."""
    found = read_json(work / "C2" / "dynamic-buckets" / "dynamic_buckets.json")
    rows = (
        [] if found is None else [row for row in found["summary"]["on_the_mix"] if row["measured_saving"] is not None]
    )
    tree = [row for row in rows if row["selection"] == "tree"]
    if not tree:
        return missing("bench dynamic-buckets has not run")
    savings = [row["measured_saving"] for row in tree]
    controls = tuple(
        f"{row['selection']}, {row['direction']}: {percent(-row['measured_saving'], sign=True)}"
        for row in rows
        if row["selection"] != "tree"
    )
    faster = median([row["times_faster"] for row in tree])
    return Finding(
        verdict=in_parts([saving >= CLAIMED_SAVING - _SAVING_ALLOWED for saving in savings]),
        measured="; ".join(f"{row['direction']} {percent(-row['measured_saving'], sign=True)}" for row in tree),
        controls=controls,
        note=f"no bucket's scores are ever held, so nothing is saved but time ({faster:.2g}x on the mix)",
        share=max(savings) / CLAIMED_SAVING,
        values={f"{row['selection']}/{row['direction']}": row["measured_saving"] for row in rows},
    )


def inference(work: Path) -> Finding:
    """C5: real tokens a second over BERT-large's."""
    found = read_json(work / "C5" / "encoder" / "encoder.json")
    if found is None:
        return missing("bench encoder has not run")
    ratios = {
        _where(cell, row["rival"]): row["times_faster"]
        for cell, rows in found["summary"]["rivals"].items()
        for row in rows
        if row["rival"].startswith("bert-large") and row["ours"].startswith("sortyard") and _is_plain(row["ours"])
    }
    ratios = {where: ratio for where, ratio in ratios.items() if where}
    if not ratios:
        return missing("no rival could be timed")
    fair = [ratio["median"] for where, ratio in ratios.items() if not where.endswith(_BATCHES["padded"])]
    if not fair:
        return missing("nothing but batches padded to 128 could be timed")
    factors: dict[str, list[float]] = {}
    for step in (step for steps in found["summary"]["factors"].values() for step in steps):
        factors.setdefault(step["factor"], []).append(step["times_faster"]["median"])
    return Finding(
        verdict=in_parts([ratio >= CLAIMED_SPEED for ratio in fair]),
        measured="; ".join(f"{where} {ratio['median']:.2f}x" for where, ratio in ratios.items()),
        spread="; ".join(f"{ratio['low']:.2f} to {ratio['high']:.2f}" for ratio in ratios.values()),
        controls=tuple(f"{factor} {_range(ratios)}x" for factor, ratios in factors.items()),
        note="equal total parameters, about half of them active; padding to 128 counts for nothing in the verdict",
        share=median(fair) / CLAIMED_SPEED,
        share_low=min(fair) / CLAIMED_SPEED,
        share_high=max(fair) / CLAIMED_SPEED,
        values={where: ratio["median"] for where, ratio in ratios.items()},
    )


def mixed_precision(work: Path) -> Finding:
    """C8: fp32 over bf16 and fp16."""
    compared = _training(work)
    if compared is None:
        return missing("bench training has not run")
    ratios = {
        f"{name}, {cell.partition('/')[2]} tokens": side["times_faster"]
        for cell, sides in compared.items()
        if cell.startswith("precision/")
        for name, side in sides.items()
        if side["times_faster"]
    }
    if not ratios:
        return missing("no second number format could be timed on this machine")
    middle = median(list(ratios.values()))
    return Finding(
        verdict=in_parts([ratio >= CLAIMED_PRECISION for ratio in ratios.values()]),
        measured="; ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items()),
        controls=("fp32 in the same run 1x",),
        share=middle / CLAIMED_PRECISION,
        share_low=min(ratios.values()) / CLAIMED_PRECISION,
        share_high=max(ratios.values()) / CLAIMED_PRECISION,
        note="" if any(name.startswith("fp16") for name in ratios) else "fp16 was not timed",
        values=ratios,
    )


def activation_checkpointing(work: Path) -> Finding:
    """C9: memory saved, and the time it costs."""
    compared = _training(work)
    if compared is None:
        return missing("bench training has not run")
    rows = {
        (name, cell.partition("/")[2]): side
        for cell, sides in compared.items()
        if cell.startswith("checkpointing/")
        for name, side in sides.items()
        if side["memory_saved"] is not None
    }
    full = {length: side for (name, length), side in rows.items() if name == "full"}
    if not full:
        return missing("activation checkpointing could not be timed on this machine")
    return Finding(
        verdict=in_parts([side["memory_saved"] >= CLAIMED_CHECKPOINTING for side in full.values()]),
        measured="; ".join(_saving(f"{length} tokens", side) for length, side in full.items()),
        controls=tuple(_saving(f"{name}, {length} tokens", s) for (name, length), s in rows.items() if name != "full"),
        note="of gradients and activations; with weights and moments counted in "
        + " and ".join(percent(-side["memory_saved_of_all"], sign=True) for side in full.values()),
        share=median([side["memory_saved"] for side in full.values()]) / CLAIMED_CHECKPOINTING,
        values={f"{name}/{length}": [s["memory_saved"], s["times_as_long"]] for (name, length), s in rows.items()},
    )


def accumulation(work: Path) -> Finding:
    """C10: gradients of 8 portions beside those of one batch."""
    found = read_json(work / "C8" / "training" / "training.json")
    checks = [cell["gradients"] for cell in (found or {"cells": {}})["cells"].values() if "gradients" in cell]
    if not checks:
        return missing("bench training has not compared gradients")
    worst = max(check["worst_relative_error"] for check in checks)
    rows, targets = checks[0]["rows"], checks[0]["targets"]
    return Finding(
        verdict=HOLDS if worst <= _GRADIENTS_ALIKE else FAILS,
        measured=f"gradients at most {worst:.1e} apart, of the largest of their tensor",
        controls=("the same rows as one batch",),
        note=f"float64, {rows} rows in {len(targets)} portions of {min(targets)} to {max(targets)} targets",
        values={"worst_relative_error": worst, "targets": targets},
    )


def _training(work: Path) -> Mapping[str, Json] | None:
    found = read_json(work / "C8" / "training" / "training.json")
    return None if found is None else found["summary"]["compared"]


def _slopes(lines: Mapping[str, Json]) -> dict[tuple[str, str, str], float]:
    """Exponent by direction, side, and time or memory, where enough lengths were measured."""
    return {
        (key.partition("/")[2], side, what): line[f"{what}_slope"]["exponent"]
        for key, sides in lines.items()
        for side, line in sides.items()
        for what in ("time", "memory")
        if line[f"{what}_slope"] and line[f"{what}_slope"]["points"] >= _ENOUGH_LENGTHS
    }


def _line(kind: tuple[str, str, str]) -> str:
    return f"{kind[2]} {kind[0]}"


def _lengths(found: Json) -> str:
    lengths = sorted({cell["length"] for cell in found["cells"].values()})
    return f"{lengths[0]:,} to {lengths[-1]:,} tokens" if lengths else ""


def _where(cell: str, rival: str) -> str:
    """Number format, and kind of batch or length; "" for batches that stand for no user's."""
    dtype, _, rest = cell.partition("/")
    batches = rival.partition("@")[2]
    place = _BATCHES.get(batches, "") if batches else f"{rest.rpartition('/')[2]} tokens"
    return f"{dtype} {place}" if place else ""


def _is_plain(ours: str) -> bool:
    return ours.partition("@")[0] == "sortyard"


def _range(ratios: Sequence[float]) -> str:
    low, high = (f"{ratio:.2f}" for ratio in (min(ratios), max(ratios)))
    return low if low == high else f"{low} to {high}"


def _saving(name: str, side: Json) -> str:
    memory, time = (percent(share, sign=True) for share in (-side["memory_saved"], side["times_as_long"] - 1))
    return f"{name} {memory} memory, {time} time"
