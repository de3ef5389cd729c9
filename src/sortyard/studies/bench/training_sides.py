"""The sides of `bench training`: one training step each, by number format, checkpointing, portions, rows or model."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch

from sortyard.evaluation.cost import parameter_counts
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.parallel.activation_checkpointing import checkpoint_activations
from sortyard.parallel.options import ActivationCheckpointing
from sortyard.studies.bench.runner import Call, reason_of
from sortyard.studies.bench.tables import seconds_text
from sortyard.studies.bench.training_cases import (
    MICRO_BATCHES,
    ROWS,
    Batch,
    TrainingCase,
    equal_rows,
    make_model,
    packed_rows,
    padded_rows,
)
from sortyard.training.optimizer import build_optimizer
from sortyard.training.options import OptimizerOptions
from sortyard.training.precision import Precision
from sortyard.training.step import Stepper

_LR = 1e-5
_TRIAL_SECONDS = 20.0
_SMALL = 64  # tokens of a row of a short step, which has two


@dataclass(frozen=True)
class TrainingSide:
    """One way to take a step.

    Attributes:
        name: Its name in results.
        note: What it is, in words.
        precision: Number format of the matrix products.
        mode: What layers compute again in the backward pass.
        every: Which layers do.
        is_dense: Whether the model is the dense twin.
        rows: The step's micro-batches.
    """

    name: str
    note: str
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    mode: ActivationCheckpointing = "none"
    every: int = 1
    is_dense: bool = False
    rows: Callable[[TrainingCase], list[Batch]] = equal_rows

    # Cells of other lengths have as many tokens: only attention can grow, and it is a part of the whole.
    time_power = 1.0
    memory_power = 1.0
    needs_warmup = False

    def unfit(self, case: TrainingCase) -> str:
        """Why a case cannot be measured with it: this torch refuses a small step of it, or takes very long for one."""
        if self.precision != "fp16":
            return ""
        small = replace(case, length=_SMALL, tokens=2 * _SMALL)
        try:
            step = self.call(small)
            step()
            started = time.perf_counter()
            step()
        except (RuntimeError, NotImplementedError, TypeError) as error:
            return f"this torch takes no such step here: {reason_of(error)}"
        seconds = (time.perf_counter() - started) * case.tokens / small.tokens
        return f"predicted to take {seconds_text(seconds)} a step, by a small one" if seconds > _TRIAL_SECONDS else ""

    def least_bytes(self, case: TrainingCase) -> int:  # noqa: ARG002
        """What a call needs for certain."""
        return 0

    def call(self, case: TrainingCase) -> Call:
        """A step: forward, backward, update."""
        trained = load_trained(case.size(), is_dense=self.is_dense)
        precision = Precision(self.precision, device=torch.device(case.device))
        stepper = Stepper(
            trained.model, objective=MaskedLMObjective(), optimizer=trained.optimizer, precision=precision,
            max_grad_norm=1.0, lr=lambda _: _LR, seed=case.seed,
        )  # fmt: skip
        batches = self.rows(case)

        def step() -> object:
            checkpoint_activations(trained.model, self.mode, self.every)
            return stepper.take(batches, step=0)

        return step

    def warm(self, case: TrainingCase) -> None:
        """Take a short step, which loads kernels and makes the optimizer's moments."""
        self.call(replace(case, length=_SMALL, tokens=2 * _SMALL))()

    def facts(self, case: TrainingCase) -> dict[str, Any]:
        """Its sizes, and the tokens of a step."""
        counts = _sizes(case.size(), is_dense=self.is_dense)
        batches = self.rows(case)
        return {
            "parameters": counts.total,
            "active_parameters": counts.active,
            "state_bytes": 12 * counts.total,
            "real_tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
            "all_tokens": sum(batch["input_ids"].numel() for batch in batches),
        }


@dataclass(frozen=True)
class Trained:
    """A model with its optimizer; what sides share, as a step leaves nothing behind but weights."""

    model: Any
    optimizer: torch.optim.Optimizer


@lru_cache(maxsize=2)
def load_trained(case: TrainingCase, *, is_dense: bool) -> Trained:
    """Build a model and its optimizer; the last two are kept."""
    model = make_model(case, is_dense=is_dense).to(case.device)
    return Trained(model, build_optimizer(model, OptimizerOptions(lr=_LR)))


@lru_cache
def _sizes(case: TrainingCase, *, is_dense: bool) -> Any:
    with torch.device("meta"):
        return parameter_counts(make_model(case, is_dense=is_dense))


def _portions(case: TrainingCase) -> list[Batch]:
    return equal_rows(case, micro_batches=MICRO_BATCHES)


# The first side of a topic is what the others are compared with.
TOPICS: dict[str, tuple[TrainingSide, ...]] = {
    "checkpointing": (
        TrainingSide("none", "every activation is kept"),
        TrainingSide("full", "every layer keeps its input only", mode="full"),
        TrainingSide("every-2", "every second layer keeps its input only", mode="full", every=2),
        TrainingSide("selective", "every layer keeps products, attention, experts and sorts", mode="selective"),
    ),
    "precision": (
        TrainingSide("fp32", "32-bit products"),
        TrainingSide("bf16", "bfloat16 products by autocast; weights, gates, softmax, norms and loss in 32 bits",
                     precision="bf16"),
        TrainingSide("fp16", "float16 products by autocast, the loss scaled", precision="fp16"),
    ),
    "twin": (
        TrainingSide("dense", "dense attention, dense layers as wide as a token's experts together", is_dense=True),
        TrainingSide("sparse", "bucket attention, 8 experts of which a token has 2"),
    ),
    "accumulation": (
        TrainingSide(f"1x{ROWS}", f"{ROWS} rows at once"),
        TrainingSide(f"{MICRO_BATCHES}x{ROWS // MICRO_BATCHES}", f"the same rows in {MICRO_BATCHES} portions",
                     rows=_portions),
    ),
    "packing": (
        TrainingSide("padded", "a row a document, padded to the longest", rows=padded_rows),
        TrainingSide("packed", "rows full of documents one after another, attention within each", rows=packed_rows),
    ),
}  # fmt: skip


def find_sides(topic: str) -> dict[str, TrainingSide]:
    """Every side of a topic, the one that others are compared with first."""
    return {side.name: side for side in TOPICS[topic]}
