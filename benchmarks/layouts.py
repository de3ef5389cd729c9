"""Every layout of up to eight processes beside one process, in float64 over 20 steps; and tensor 8 x pipeline 4.

A small model (bucket attention, routed experts, balance loss, selection bias, clipping, AdamW) is trained by dp x tp x
pp x ep processes with a product of at most 8, in five pipeline schedules, with and without activation checkpointing,
with 1 and with 8 micro-batches to a step, whose target counts differ. Losses must agree to 1e-12, gradients of every
parameter to 1e-10 of the largest of its tensor. Group "wide" is the article's layout: 32 processes, and with dp 2, 64.

Run: python benchmarks/layouts.py [--groups first eight wide] [--sizes 2 4 8] [--work runs/layouts] [--minutes 60]
Writes benchmarks/results/layouts.json. What is measured is not measured again; each case names the commit, the torch
and the processor that it ran with (earlier ones only the commit, the first ones nothing). The exit status is 1 where a
case fails.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch

from runs import ROOT, write_result

sys.path.insert(0, str(ROOT))

from tests.parallel.equality import Case, run_world

from sortyard.parallel.schedule import can_split_backward
from sortyard.runs.environment import describe_environment

SCHEDULES = ("gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble")
DIMS = ("dp_shard", "dp_replicate", "tp", "pp", "ep")
LOSS, GRADIENT = 1e-12, 1e-10
AT_ONCE = 8  # cases that one set of processes takes before it is started anew
Measured = dict[str, dict[str, Any]]


def layouts(size: int) -> Iterator[dict[str, int]]:
    """Sizes of dp, tp, pp, ep with this product; data parallelism both cut and, where it is 2 or more, replicated."""
    for dp, tp, pp, ep in product(range(1, size + 1), (1, 2, 4, 8), range(1, size + 1), (1, 2, 4, 8)):
        if dp * tp * pp * ep != size:
            continue
        rest = {"tp": tp, "pp": pp, "ep": ep}
        yield {name: value for name, value in {"dp_shard": dp, **rest}.items() if value > 1}
        if dp in (2, 4, 8):
            halves = {"dp_replicate": 2, "dp_shard": dp // 2, **rest}
            yield {name: value for name, value in halves.items() if value > 1}


def model_for(pp: int, schedule: str) -> str:
    """The smallest model with a layer for each stage."""
    stages = pp if schedule in ("gpipe", "1f1b") else 2 * pp
    return "tree" if stages <= 4 else "deep" if stages <= 8 else "deeper"


def cases(size: int, *, accumulation: int) -> Iterator[Case]:
    """All cases of a size: schedules where there is a pipeline, activation checkpointing on and off."""
    for layout in layouts(size):
        pp = layout.get("pp", 1)
        for schedule, checkpointing in product(SCHEDULES if pp > 1 else ("1f1b",), ("none", "full")):
            rounds = max(1, accumulation // pp)
            if schedule.startswith("interleaved") and accumulation % rounds:
                continue
            named = {"schedule": schedule} if pp > 1 else {}
            yield Case(
                {**layout, **named}, model_for(pp, schedule), accumulation=accumulation, checkpointing=checkpointing
            )


def groups() -> dict[str, list[tuple[int, list[Case]]]]:
    """Cases by group and number of processes, in the order of running."""
    wide = [
        (32, [Case({"tp": 8, "pp": 4}, "deep", accumulation=8, steps=3)]),
        (64, [Case({"dp_shard": 2, "tp": 8, "pp": 4}, "deep", accumulation=8, steps=3)]),
    ]
    return {
        "first": [(size, list(cases(size, accumulation=1))) for size in range(2, 9)],
        "eight": [(size, list(cases(size, accumulation=8))) for size in range(2, 9)],
        "wide": wide,
    }


def passes(report: dict[str, Any]) -> bool:
    losses = max(report[name] for name in ("losses", "balances", "norms"))
    gradients = max(report[name] for name in ("first", "last", "values"))
    return losses < LOSS and gradients < GRADIENT and report["loads"] == 0


def summary(measured: Measured) -> dict[str, Any]:
    worst = {
        name: max(report[name] for report in measured.values())
        for name in ("losses", "balances", "norms", "first", "last", "values")
    }
    return {
        "cases": len(measured),
        "failed": [name for name, report in measured.items() if not passes(report)],
        "worst": worst,
    }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--groups", nargs="+", default=["first", "eight", "wide"], choices=["first", "eight", "wide"])
    words.add_argument("--sizes", nargs="+", type=int, default=[*range(2, 9), 32, 64])
    words.add_argument("--work", type=Path, default=ROOT / "runs" / "layouts")
    words.add_argument("--minutes", type=float, default=0.0, help="begin nothing more after this time; 0 = no limit")
    options = words.parse_args()
    assert can_split_backward(), f"torch is {torch.__version__}; two of the schedules need 2.13"
    record = options.work / "measured.json"
    measured: Measured = json.loads(record.read_text()) if record.exists() else {}
    started = time.monotonic()
    planned = groups()
    total = sum(len(found) for each in planned.values() for _, found in each)
    environment = describe_environment(seed=7, device="cpu", data_fingerprint="random tokens", command=["layouts.py"])
    code = {
        "commit": environment["commit"],
        "torch": environment["versions"]["torch"],
        "cpu": environment["machine"]["cpu"],
    }
    for group in options.groups:
        for size, found in planned[group]:
            left = [case for case in found if case.name not in measured] if size in options.sizes else []
            for first in range(0, len(left), AT_ONCE):
                if options.minutes and time.monotonic() - started > 60 * options.minutes:
                    break
                chosen = left[first : first + AT_ONCE]
                assert all(prod(case.layout.get(dim, 1) for dim in DIMS) == size for case in chosen)
                for case, report in zip(chosen, run_world(chosen, size=size, folder=options.work), strict=True):
                    report.pop("covered")
                    measured[case.name] = {**report, "processes": size, "steps": case.steps, "group": group, **code}
                    print(f"{'ok  ' if passes(report) else 'FAIL'} {case.name}: {report['losses']:.1e}", flush=True)
                record.write_text(json.dumps(measured, indent=1))
    figures = summary(measured) | {"planned": total, "must": {"loss": LOSS, "gradient": GRADIENT}}
    date = datetime.now(UTC).date().isoformat()
    write_result("layouts", {"summary": figures, "date": date, "environment": environment, "cases": measured})
    print(json.dumps(figures, indent=1))
    sys.exit(1 if figures["failed"] else 0)


if __name__ == "__main__":
    main()
