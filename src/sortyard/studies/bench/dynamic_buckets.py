"""`bench dynamic-buckets`: buckets that follow the length against a fixed number of them (claim C2 of the seed)."""

import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sortyard.ops.bucket_attention import choose_backend
from sortyard.studies.bench.bucket_counts import FIXED_BUCKETS, dynamic_probe, packed_work, specs_of
from sortyard.studies.bench.cases import Case, make_call, make_inputs, synchroniser
from sortyard.studies.bench.dynamic_buckets_page import dynamic_page, dynamic_text
from sortyard.studies.bench.memory import peak_extra_memory
from sortyard.studies.bench.results import BenchResult, bench_command, new_result
from sortyard.studies.bench.runner import alternate, ratio_of
from sortyard.studies.bench.study import Say, Study, run_study

Json = dict[str, Any]
SELECTIONS = ("tree", "rounds")
CLAIMED_SAVING = 0.42
MIX = "mix"
_PATIENCE_SECONDS = 20.0
WHAT = (
    "peak memory of one call on top of its inputs, and its seconds: bucket attention whose buckets follow the length "
    f"beside {FIXED_BUCKETS} fixed buckets, for a mix of lengths packed into one row and for single lengths"
)


@dataclass(frozen=True)
class DynamicPlan:
    """What `bench dynamic-buckets` measures.

    Attributes:
        shortest: Shortest sequence in tokens.
        longest: Longest sequence in tokens.
        sequences: Sequences of the mix, their lengths drawn log-uniformly.
        lengths: Single sequences that are measured besides; empty = from the shortest on, doubling.
        dtype: "fp32" or "bf16".
        directions: Among "forward" and "forward+backward".
        heads: Attention heads.
        head_width: Width of a head.
        threads: Threads of torch.
        repetitions: Measured rounds of a cell.
        seed: Seed of lengths and inputs.
        device: "cpu" or "cuda".
        minutes: Time for the whole; infinite where it does not matter.
    """

    shortest: int
    longest: int
    sequences: int
    lengths: tuple[int, ...]
    dtype: str
    directions: tuple[str, ...]
    heads: int
    head_width: int
    threads: int
    repetitions: int
    seed: int
    device: str
    minutes: float

    def command(self) -> str:
        """Return the command line that asks for this plan."""
        words = {
            "--shortest": self.shortest,
            "--longest": self.longest,
            "--sequences": self.sequences,
            "--lengths": ",".join(map(str, self.singles())),
            "--dtype": self.dtype,
            "--directions": ",".join(self.directions),
            "--heads": self.heads,
            "--head-width": self.head_width,
            "--threads": self.threads,
            "--repetitions": self.repetitions,
            "--seed": self.seed,
            "--device": self.device,
            "--minutes": self.minutes,
        }
        return bench_command("dynamic-buckets", words)

    def settings(self) -> Json:
        """Return what changes the value of a cell."""
        return {
            "dtype": self.dtype,
            "heads": self.heads,
            "head_width": self.head_width,
            "repetitions": self.repetitions,
            "device": self.device,
            "backend": choose_backend(device=self.device),
            "fixed_buckets": FIXED_BUCKETS,
            "mix": list(self.mix()),
        }

    def mix(self) -> tuple[int, ...]:
        """Return the lengths of the mix."""
        drawn = random.Random(self.seed)
        low, high = math.log(self.shortest), math.log(self.longest)
        return tuple(round(math.exp(drawn.uniform(low, high))) for _ in range(self.sequences))

    def cells(self) -> dict[str, tuple[str, str, str]]:
        """Return direction, selection and load of every cell, by the cell's key."""
        return {"/".join(where): where for where in product(self.directions, SELECTIONS, self.loads())}

    def loads(self) -> dict[str, tuple[int, ...]]:
        """Return the sequences of each load: the mix, and single sequences."""
        return {MIX: self.mix()} | {str(length): (length,) for length in self.singles()}

    def singles(self) -> tuple[int, ...]:
        """Return the lengths that are measured by themselves."""
        doublings = int(math.log2(self.longest / self.shortest))
        return self.lengths or tuple(self.shortest << i for i in range(doublings + 1))


def run_dynamic_buckets(plan: DynamicPlan, *, folder: Path, fresh: bool, say: Say) -> tuple[BenchResult, str]:
    """Measure what is missing, writing dynamic_buckets.json after every cell and dynamic_buckets.html at the end.

    Args:
        plan: What to measure.
        folder: An existing folder for the files.
        fresh: Whether to measure anew what an earlier run left.
        say: Takes a line of progress.

    Returns:
        The result and its tables as text.

    Raises:
        InputError: the folder holds a result of other settings, code or machine.
    """
    begun = new_result(
        "dynamic_buckets", what=WHAT, command=plan.command(), seed=plan.seed, threads=plan.threads,
        device=plan.device, settings=plan.settings(),
    )  # fmt: skip
    study = Study(
        begun=begun,
        items=plan.cells(),
        measure=lambda where, _, seconds: _measure(*where, plan=plan, seconds=seconds),
        words=_words,
        summarise=summarise,
        write_page=dynamic_page,
        write_text=dynamic_text,
        weight=lambda where: math.sqrt(sum(plan.loads()[where[2]])),
    )
    return run_study(study, folder=folder, fresh=fresh, say=say, seconds=60 * plan.minutes)


def summarise(cells: Mapping[str, Json]) -> Json:
    """The claim beside what the mix shows, for each selection and direction."""
    found = [
        {
            "selection": cell["selection"],
            "direction": cell["direction"],
            "claimed_saving": CLAIMED_SAVING,
            "measured_saving": cell["memory_saved"],
            "holds": cell["memory_saved"] is not None and cell["memory_saved"] >= CLAIMED_SAVING,
            "times_faster": cell["times_faster"]["median"],
        }
        for cell in cells.values()
        if cell["load"] == MIX
    ]
    return {"claim": "C2: dynamic buckets save 42 % memory", "on_the_mix": found}


def _words(cell: Json) -> str:
    saved = cell["memory_saved"]
    words = "no memory measured" if saved is None else f"memory saved {saved:.0%}"
    return f"{words}, {cell['times_faster']['median']:.2f} times faster"


def _measure(direction: str, selection: str, load: str, *, plan: DynamicPlan, seconds: float) -> Json:
    ends = time.monotonic() + seconds
    lengths, specs = plan.loads()[load], specs_of(selection)
    case = Case(
        length=sum(lengths), dtype=plan.dtype, direction=direction, heads=plan.heads, head_width=plan.head_width,
        seed=plan.seed, device=plan.device,
    )  # fmt: skip
    peaks = {side: _peak(case, selection, side, lengths, threads=plan.threads) for side in specs}
    inputs = make_inputs(case)
    runs = alternate(
        {side: make_call(packed_work(inputs, spec, lengths), direction=direction) for side, spec in specs.items()},
        repetitions=plan.repetitions,
        patience_seconds=_PATIENCE_SECONDS,
        seconds=ends - time.monotonic(),
        synchronise=synchroniser(case.device),
    )
    following, fixed = (peaks[side]["peak_extra_bytes"] for side in ("following", "fixed"))
    return {
        "direction": direction, "selection": selection, "load": load, "tokens": case.length,
        "sides": {
            side: {"seconds": runs[side], "median_seconds": statistics.median(runs[side]), **peaks[side]}
            for side in specs
        },
        "memory_saved": 1 - following / fixed if following is not None and fixed else None,
        "times_faster": ratio_of(runs["fixed"], runs["following"]).record(),
    }  # fmt: skip


def _peak(case: Case, selection: str, side: str, lengths: Sequence[int], *, threads: int) -> Json:
    arguments = {
        "selection": selection, "side": side, "lengths": list(lengths), "dtype": case.dtype, "direction":
        case.direction, "heads": case.heads, "head_width": case.head_width, "seed": case.seed, "device": case.device,
    }  # fmt: skip
    found = peak_extra_memory(
        f"{dynamic_probe.__module__}:dynamic_probe", arguments, device=case.device, threads=threads
    )
    return {"peak_extra_bytes": found.num_bytes, "memory_by": found.method, "memory_problem": found.problem}
