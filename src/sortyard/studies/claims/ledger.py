"""`study claims`: every claim measured by commands of sortyard, and the table that comes of it."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from sortyard.errors import InputError
from sortyard.studies.bench.results import BenchResult, new_result, save_result
from sortyard.studies.claims.claim_list import BY_ID, CLAIMS
from sortyard.studies.claims.claims_figures import claim_figures
from sortyard.studies.claims.claims_page import claims_page, claims_text, write_markdown
from sortyard.studies.claims.cpu_steps import Asked, ledger_steps
from sortyard.studies.claims.findings import Finding, Reader, missing
from sortyard.studies.claims.learning import (
    attention_sparsity,
    dynamic_routing,
    processes,
    training_efficiency,
    twin_accuracy,
    utilisation,
)
from sortyard.studies.claims.running import UNKNOWN, StepLog, run_steps
from sortyard.studies.claims.speed import (
    accumulation,
    activation_checkpointing,
    attention_cost,
    dynamic_buckets,
    inference,
    mixed_precision,
)
from sortyard.studies.claims.steps import Step, wanted
from sortyard.studies.claims.texts import write_texts
from sortyard.studies.given import GIVEN, keep_given, place_digest, text_digest

Json = dict[str, Any]
Say = Callable[[str], None]
READERS: Mapping[str, Reader] = {
    "C1": attention_cost,
    "C2": dynamic_buckets,
    "C3": utilisation,
    "C4": twin_accuracy,
    "C5": inference,
    "C6": dynamic_routing,
    "C7": attention_sparsity,
    "C8": mixed_precision,
    "C9": activation_checkpointing,
    "C10": accumulation,
    "C11": training_efficiency,
    "C12": processes,
}
SHARED = {"C9": "C8", "C10": "C8"}  # claims that are read from another's measurement
WHAT = "the claims of the article of 12 September 2025, each measured beside its controls"
WORK = "work"


@dataclass(frozen=True)
class ClaimsPlan:
    """What `study claims` measures.

    Attributes:
        texts: A path by name; empty = the documentation of Python's standard library.
        encoder: A dense pretrained encoder, or None.
        glue: A folder with SST-2, or None.
        novels: A table with text and author, or None.
        claims: Among the ids of `CLAIMS`, in their order.
        gpu: Whether a GPU does the work.
        jobs: Trainings at the same time.
        minutes: After so many no command is begun; infinite = no end.
        compiled: Whether the compiled attention kernels can be used.
        factor: Share of the usual training steps.
    """

    texts: Mapping[str, str]
    encoder: Path | None
    glue: Path | None
    novels: Path | None
    claims: tuple[str, ...]
    gpu: bool
    jobs: int
    compiled: bool
    minutes: float = math.inf
    factor: float = 1.0

    @property
    def places(self) -> dict[str, Path]:
        """What is given besides texts, by the name of its option."""
        places = {"encoder": self.encoder, "glue": self.glue, "novels": self.novels}
        return {name: path for name, path in places.items() if path is not None}

    def digests(self) -> dict[str, str]:
        """Digest what is given, by its option.

        Raises:
            InputError: a text is not there.
        """
        texts = {f"--data {name}": text_digest(path) for name, path in self.texts.items()}
        return texts | {f"--{name}": place_digest(path) for name, path in self.places.items()}

    def command(self) -> str:
        """Return the command line that asks for this plan, without places of this machine."""
        words = [f"--scale {'gpu' if self.gpu else 'cpu'}"]
        words += [f"--data {name}={Path(path).name}" for name, path in self.texts.items()]
        words += [f"--{name} {path.name}" for name, path in self.places.items()]
        words += [f"--only {','.join(self.claims)}"] if len(self.claims) < len(CLAIMS) else []
        return " ".join(["sortyard study claims", *words, f"--jobs {self.jobs}"])


def plan_steps(plan: ClaimsPlan, *, domains: Sequence[str]) -> list[Step]:
    """The commands of a plan, in the order of running.

    Args:
        plan: What to measure.
        domains: Names of the texts.
    """
    asked = Asked(
        domains=tuple(domains),
        has_encoder=plan.encoder is not None and plan.glue is not None,
        has_novels=plan.novels is not None,
        compiled=plan.compiled,
        gpu=plan.gpu,
        factor=plan.factor,
    )
    return wanted(ledger_steps(asked), [SHARED.get(claim, claim) for claim in plan.claims])


def run_claims(plan: ClaimsPlan, *, folder: Path, dry_run: bool, say: Say) -> tuple[BenchResult, str]:
    """Run what is missing and write claims.json, claims.html and claims.md after every command.

    Args:
        plan: What to measure.
        folder: An existing folder; what the commands leave is in its folder `work`.
        dry_run: Whether to say what would be run and how long it takes, and to read what is there.
        say: Takes a line of progress.

    Returns:
        The result and its table as text.

    Raises:
        InputError: a text cannot be used, the folder holds work on something else than is given, or a run that cannot
            go on.
    """
    work = (folder / WORK).resolve()
    domains = tuple(plan.texts) or ("python",)
    if not dry_run:
        work.mkdir(parents=True, exist_ok=True)
        domains = write_texts(plan.texts, folder=work / "texts")
        keep_given(plan.digests(), file=work / GIVEN, remedy="give the same as before, or another --out")
    steps, every = (plan_steps(one, domains=domains) for one in (plan, replace(plan, claims=tuple(BY_ID))))
    log = StepLog.read(work)
    _announce(log.left(steps), jobs=plan.jobs, say=say)
    result = new_result(
        "claims", what=WHAT, command=plan.command(), seed=0, threads=1, device="cuda" if plan.gpu else "cpu",
        settings={"scale": "gpu" if plan.gpu else "cpu", "texts": list(domains), "jobs": plan.jobs},
        sources=("data", "evaluation", "model", "objectives", "ops", "tokenizer", "training"),
    )  # fmt: skip

    def collect() -> None:
        _collect(result, every, work=work)
        if not dry_run:
            save_result(result, folder=folder)
            claims_page(result, folder=folder, figures=claim_figures(work))
            write_markdown(result, folder=folder)

    if not dry_run:
        places = {"work": work} | {name: path.resolve() for name, path in plan.places.items()}
        run_steps(
            steps, places=places, origin=_origin(result), jobs=plan.jobs, minutes=plan.minutes, say=say, after=collect,
            environment={} if plan.gpu else {"CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
    collect()
    return result, claims_text(result)


def _announce(steps: Sequence[Step], *, jobs: int, say: Say) -> None:
    """The time plan."""
    if not steps:
        say("everything that was asked for is measured; the ledger is read again")
        return
    alone = sum(step.minutes for step in steps if step.alone)
    rest = sum(step.minutes for step in steps if not step.alone)
    for claim in dict.fromkeys(step.claim for step in steps):
        own = [step for step in steps if step.claim == claim]
        kind = "of the whole machine" if all(step.alone for step in own) else "of one core"
        say(f"{claim or 'shared':6s} {len(own):3d} commands, about {sum(s.minutes for s in own):4.0f} min {kind}")
    say(
        f"about {alone + rest / jobs:.0f} min in all with {jobs} at a time; interrupt at will, the same command goes on"
    )


def _origin(result: BenchResult) -> Json:
    """Machine and code of this call."""
    return {"machine": result.machine, "code": result.code, "commit": result.commit}


def _origins(entries: Iterable[Json]) -> list[Json]:
    """The machines and codes that a claim's steps were made with, each once; an empty one is not known."""
    found: dict[str, Json] = {}
    for origin in chain.from_iterable(entry.get("origins", [UNKNOWN]) for entry in entries):
        found.setdefault(json.dumps([origin.get("machine"), origin.get("code")]), origin)
    return list(found.values())


def _collect(result: BenchResult, steps: Sequence[Step], *, work: Path) -> None:
    """Read every claim's measurement; those that were not asked for too, where there is one."""
    log = StepLog.read(work)
    for claim in CLAIMS:
        own = [step for step in steps if step.claim == SHARED.get(claim.id, claim.id)]
        finding = _read(claim.id, work)
        entries = {step.name: log.entries[step.name] for step in own if step.name in log.entries}
        problems = [f"{name}: {entry['problem']}" for name, entry in entries.items() if entry["problem"]]
        result.cells[claim.id] = {
            "title": claim.title,
            "claimed": claim.claimed,
            "how": claim.how,
            **finding.record(),
            "commands": {name: entry["command"] for name, entry in entries.items()},
            "processor_seconds": round(sum(entry["processor_seconds"] for entry in entries.values())),
            "origins": _origins(entries.values()),
            "dates": sorted({entry["date"] for entry in entries.values()}),
            "machine_load": max((entry["machine_load"] or 0 for entry in entries.values()), default=None),
            "problems": problems,
        }
    verdicts = [cell["verdict"] for cell in result.cells.values()]
    result.summary = {"verdicts": {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}}
    result.complete = not log.left(steps)


def _read(claim: str, work: Path) -> Finding:
    """Read a claim's measurement; half-written files of an interrupted command are no measurement."""
    reader = READERS.get(claim)
    if reader is None:
        return missing("there is no measurement of it yet")
    try:
        return reader(work)
    except (KeyError, ValueError, StopIteration) as error:
        return missing(f"its result cannot be read ({type(error).__name__}: {error})")


def check_claims(words: Sequence[str]) -> tuple[str, ...]:
    """Put ids of claims in order.

    Raises:
        InputError: one is unknown.
    """
    for word in words:
        if word not in BY_ID:
            raise InputError(f"--only {word}: is none of {', '.join(BY_ID)}")
    return tuple(claim for claim in BY_ID if claim in words)
