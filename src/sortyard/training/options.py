"""What a training run may set: the loop, the optimizer and the learning-rate schedule."""

import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from sortyard.options import Options
from sortyard.parallel.options import ActivationCheckpointing

TrackerName = Literal["trackio", "wandb"]


class OptimizerOptions(Options):
    """AdamW; weight decay spares biases, normalisations and embeddings (see `optimizer.parameter_groups`)."""

    lr: float = Field(3e-4, gt=0, le=1, description="highest learning rate; the schedule scales it")
    weight_decay: float = Field(0.01, ge=0, le=1, description="decoupled weight decay of the weight matrices")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the running mean of the gradient")
    beta2: float = Field(0.98, ge=0, lt=1, description="decay of the running mean of the squared gradient")
    eps: float = Field(1e-6, gt=0, le=1e-2, description="added to the root of the squared mean")


class ScheduleOptions(Options):
    """How the learning rate moves from the first step to the last."""

    name: Literal["linear", "cosine", "wsd", "constant"] = Field(
        "linear", description="shape after the warm-up: linear or cosine decay, warm-up-stable-decay, or constant"
    )
    warmup_ratio: float = Field(0.06, ge=0, le=1, description="share of the steps over which the rate rises from 0")
    decay_ratio: float = Field(0.2, ge=0, le=1, description="wsd only: share of the steps, at the end, that decay")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="rate after the last step, as a share of lr")

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        if self.name == "wsd" and self.warmup_ratio + self.decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio {self.warmup_ratio} + decay_ratio {self.decay_ratio} is more than 1: "
                "warm-up and decay share one run, so lower one of them"
            )
        return self


class LoopOptions(Options):
    """How long a run trains, in what portions, and what it writes down on the way."""

    steps: int | None = Field(None, ge=1, le=10**9, description="optimizer steps to take; or set epochs")
    epochs: float | None = Field(None, gt=0, le=10**6, description="passes over the training data; or set steps")
    micro_batch_size: int = Field(16, ge=1, le=2**20, description="samples in one forward and backward pass")
    accumulation_steps: int = Field(1, ge=1, le=2**16, description="micro-batches whose gradients make one step")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="number format of the matrix products; weights and gates stay float32"
    )
    activation_checkpointing: ActivationCheckpointing = Field(
        "none",
        description="what layers compute again in the backward pass, for less memory, more time and the same result: "
        "none, full (everything) or selective (all but matrix products, attention, sorts and communication)",
    )
    activation_checkpointing_every: int = Field(
        1, ge=1, le=10**4, description="checkpoint every so many-th layer, the first among them; 1 = all"
    )
    compile: bool = Field(
        False, description="compile the layers with torch.compile: slow first steps, faster ones afterwards on a GPU"
    )
    max_grad_norm: float = Field(1.0, ge=0, le=1e6, description="largest gradient norm; 0 = no clipping")
    log_every: int = Field(10, ge=1, le=10**6, description="steps between two lines of metrics.jsonl")
    eval_every: int = Field(0, ge=0, le=10**9, description="steps between two evaluations; 0 = only at the end")
    checkpoint_every: int = Field(0, ge=0, le=10**9, description="steps between two checkpoints; 0 = only at the end")
    keep_checkpoints: int = Field(2, ge=1, le=10**4, description="newest checkpoints to keep; the best is kept besides")
    async_checkpoints: bool = Field(
        False, description="write checkpoints while training goes on; takes memory for a second copy of the state"
    )
    early_stopping_patience: int = Field(
        0, ge=0, le=10**4, description="evaluations without a gain before the run ends; 0 = off"
    )
    keep_best: bool = Field(False, description="end with the weights of the best evaluation, not with the last ones")
    max_bad_steps: int = Field(10, ge=1, le=10**4, description="non-finite steps in a row before the run gives up")
    num_threads: int = Field(0, ge=0, le=1024, description="torch's CPU threads; 0 = leave torch's own number")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train; auto = a GPU if there is one")
    max_seconds: float = Field(0.0, ge=0, description="training time after which the run ends as finished; 0 = off")
    tensorboard: bool = Field(True, description="also write the metrics for TensorBoard")
    trackers: tuple[TrackerName, ...] = Field(
        (), description="installed packages that get the metrics, too: trackio, wandb; neither uses a network by itself"
    )

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _reads_the_old_switch(cls, value: object) -> object:
        """Read the true and false of earlier recipes, and the word off, which is false to most readers of YAML."""
        if isinstance(value, bool):
            return "full" if value else "none"
        return "none" if value == "off" else value

    @model_validator(mode="after")
    def _can_compile(self) -> Self:
        if self.compile and self.activation_checkpointing == "selective":
            raise ValueError(
                "compile is true and activation_checkpointing is selective, which chooses by operators that a compiled "
                "layer no longer has: set activation_checkpointing to none or full, or compile to false"
            )
        return self

    @model_validator(mode="after")
    def _length_is_clear(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"steps is {self.steps} and epochs is {self.epochs}: set exactly one of them and the other to null"
            )
        if self.early_stopping_patience and not self.eval_every:
            raise ValueError(
                f"early_stopping_patience is {self.early_stopping_patience} but eval_every is 0: "
                "set eval_every to at least 1, or early_stopping_patience to 0"
            )
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run.

        Args:
            steps_per_epoch: optimizer steps in one pass over the data, at least 1.

        Returns:
            The number of steps, at least 1; a part of a step counts as a whole one.
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * steps_per_epoch))
