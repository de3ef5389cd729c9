"""The sides of `bench encoder`: models, and for short sentences models with a kind of batches."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from sortyard.evaluation.compiling import compile_model
from sortyard.studies.bench.encoder_cases import (
    BATCHING_NOTES,
    FIXED,
    EncoderCase,
    make_batches,
)
from sortyard.studies.bench.encoder_models import KEPT_MODELS, MODELS, load_model, sizes
from sortyard.studies.bench.memory import Probe
from sortyard.studies.bench.runner import Call

COMPILED = "-compiled"
_WARM_LENGTH = 64
_SHORT_SIDES = {
    "bert-large": ("padded", "dynamic", "sorted", "tokens"),
    "modernbert-large": ("dynamic", "tokens"),
    "bert-base": ("dynamic", "tokens"),
    "sortyard-all-active": ("tokens",),
    "sortyard-20": ("tokens",),
    "sortyard": ("padded", "dynamic", "sorted", "tokens", "packed"),
    f"sortyard{COMPILED}": ("tokens",),
}
_FIXED_SIDES = (*MODELS, f"sortyard{COMPILED}")


@dataclass(frozen=True)
class EncoderSide:
    """One competitor: a model, eager or compiled, in a kind of batches.

    Attributes:
        name: Its name in results.
        note: What it is, in words.
        model: A key of `MODELS`.
        is_compiled: Whether it runs under torch.compile.
        batching: A kind of batches; empty where all sequences have one length.
    """

    name: str
    note: str
    model: str
    is_compiled: bool
    batching: str
    memory_power: float = 1.2

    @property
    def time_power(self) -> float:
        """How fast its time grows with the length."""
        return 2.0 if MODELS[self.model].is_quadratic else 1.2

    @property
    def needs_warmup(self) -> bool:
        """Whether its first call compiles."""
        return self.is_compiled

    def unfit(self, case: EncoderCase) -> str:  # noqa: ARG002 - a competitor may look at it
        """Every side can be measured in every case that it is asked about."""
        return ""

    def least_bytes(self, case: EncoderCase) -> int:  # noqa: ARG002
        """Nothing that is known for certain."""
        return 0

    def call(self, case: EncoderCase) -> Call:
        """All its forward passes in a case, without gradients."""
        model = _model(self, case)
        inputs = make_batches(case, self.batching).inputs

        def run() -> None:
            with torch.inference_mode():
                for batch in inputs:
                    model(**batch)

        return run

    def facts(self, case: EncoderCase) -> dict[str, Any]:
        """Its sizes, and how much of what it reads is padding."""
        found, batches = sizes(self.model), make_batches(case, self.batching)
        return {
            "total_parameters": found.total,
            "active_parameters": found.active,
            "real_tokens": batches.real_tokens,
            "all_tokens": batches.all_tokens,
            "sentences": batches.sentences,
        }


def find_sides(workload: str) -> dict[str, EncoderSide]:
    """Every side of a workload, `SHORT` or `FIXED`."""
    if workload == FIXED:
        names = [(model, "") for model in _FIXED_SIDES]
    else:
        names = [(model, batching) for model, batchings in _SHORT_SIDES.items() for batching in batchings]
    sides = [_side(model, batching) for model, batching in names]
    return {side.name: side for side in sides}


def encoder_probe(*, side: str, **fields: Any) -> Probe:
    """What the memory measurement's child runs: one side in one case, and before it the same at a small length."""
    case = EncoderCase(**fields)
    chosen = find_sides(case.workload)[side]
    call = chosen.call(case)
    # A compiled side may compile anew at another length: that must not be counted.
    return Probe(call=call, warm=call if chosen.is_compiled else chosen.call(case.at(_WARM_LENGTH)))


def _side(name: str, batching: str) -> EncoderSide:
    model = name.removesuffix(COMPILED)
    is_compiled = name != model
    words = [MODELS[model].note]
    if is_compiled:
        words.append("under torch.compile with sizes left open")
    if batching:
        words.append(BATCHING_NOTES[batching])
    return EncoderSide(
        name=f"{name}@{batching}" if batching else name, note="; ".join(words), model=model, is_compiled=is_compiled,
        batching=batching,
    )  # fmt: skip


def _model(side: EncoderSide, case: EncoderCase) -> Any:
    load = _compiled if side.is_compiled else load_model
    return load(side.model, dtype=case.dtype, device=case.device, positions=case.positions, seed=case.seed)


@lru_cache(maxsize=KEPT_MODELS)
def _compiled(name: str, **where: Any) -> Any:
    return compile_model(load_model(name, **where))
