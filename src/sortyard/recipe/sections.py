"""The sections of a recipe, composed of the parts' own options."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sortyard.data.options import CorpusOptions, MaskingOptions, TaskOptions
from sortyard.model.options import ModelOptions
from sortyard.objectives.options import DistillationOptions
from sortyard.options import Options
from sortyard.parallel.options import ParallelOptions
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.training.options import LoopOptions, OptimizerOptions, ScheduleOptions


class PretrainSection(Options):
    """Phase 1: language modelling on text."""

    data: CorpusOptions = Field(description="the text to learn from")
    objective: Literal["masked_lm", "causal_lm"] = Field(
        "masked_lm", description="predict masked tokens (an encoder), or the next token (a causal model)"
    )
    masking: MaskingOptions = Field(default_factory=MaskingOptions, description="which tokens masked_lm hides")
    held_out_rows: int = Field(
        4096, ge=1, le=10_000_000, description="held-out rows that an evaluation reads at most, evenly spread"
    )
    loop: LoopOptions = Field(description="how long, in which batches, and what is written down")
    optimizer: OptimizerOptions = Field(default_factory=OptimizerOptions, description="AdamW")
    schedule: ScheduleOptions = Field(default_factory=ScheduleOptions, description="the learning rate over the run")


class FinetuneSection(Options):
    """Phase 2: a task on labelled examples."""

    task: TaskOptions = Field(description="the task and its files")
    loop: LoopOptions = Field(description="how long, in which batches, and what is written down")
    optimizer: OptimizerOptions = Field(default_factory=OptimizerOptions, description="AdamW")
    schedule: ScheduleOptions = Field(default_factory=ScheduleOptions, description="the learning rate over the run")


class AdaptSection(Options):
    """Settling: a model whose attention was swapped or whose router is new goes on learning for a few minutes."""

    data: CorpusOptions = Field(
        description="the text; a sequence_length left out is the model's number of positions, at most 512"
    )
    objective: Literal["auto", "distil", "masked_lm", "both"] = Field(
        "auto",
        description="follow a teacher's hidden states, predict masked tokens, or both; auto follows where the model "
        "was upcycled",
    )
    teacher: str = Field(
        "dense",
        min_length=1,
        description="whom to follow: dense, the model as it starts with dense attention, or another sortyard model's "
        "folder or hub name",
    )
    distillation: DistillationOptions = Field(
        default_factory=DistillationOptions, description="how the teacher is followed"
    )
    masking: MaskingOptions = Field(default_factory=MaskingOptions, description="which tokens masked_lm hides")
    keep_dropout: bool = Field(
        False, description="leave the model's dropout on; off, nothing but attention and experts moves the states"
    )
    held_out_rows: int = Field(16, ge=1, le=100_000, description="held-out rows that every evaluation reads")
    loop: LoopOptions = Field(
        description="how long, in which batches; with max_seconds, steps is lowered to what fits into them"
    )
    optimizer: OptimizerOptions = Field(default_factory=OptimizerOptions, description="AdamW")
    schedule: ScheduleOptions = Field(default_factory=ScheduleOptions, description="the learning rate over the run")

    @model_validator(mode="after")
    def _something_is_held_out(self) -> Self:
        if self.data.validation_fraction == 0:
            raise ValueError(
                "data.validation_fraction is 0, but before and after are compared on held-out rows; raise it"
            )
        return self


class Recipe(Options):
    """One run from text to a fine-tuned model; each verb reads its own section, so one file serves them all."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="names the run folder: letters, digits, dot, dash, underscore; the file's own name if left out",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of initialisation, data order, masks and dropout")
    tokenizer: TokenizerOptions = Field(default_factory=TokenizerOptions, description="trained on the text, or loaded")
    model: ModelOptions = Field(default_factory=ModelOptions, description="the encoder; names are those of its config")
    parallel: ParallelOptions = Field(
        default_factory=ParallelOptions, description="layout of the processes of pretraining; one if left out"
    )
    pretrain: PretrainSection | None = Field(None, description="phase 1: language modelling on text")
    adapt: AdaptSection | None = Field(None, description="between the two: an upcycled model settles on text")
    finetune: FinetuneSection | None = Field(None, description="phase 2: a task on labelled examples")

    @model_validator(mode="after")
    def _causal_model_is_causal(self) -> Self:
        if self.pretrain is not None and self.pretrain.objective == "causal_lm":
            from sortyard.model.experts.options import check_causal

            check_causal(self.model)
        return self

    @model_validator(mode="after")
    def _tokens_divide(self) -> Self:
        length = self.pretrain.data.sequence_length if self.pretrain is not None else 0
        if self.parallel.sequence_parallel and length % self.parallel.tp:
            raise ValueError(
                f"parallel.sequence_parallel cuts pretrain.data.sequence_length {length} over parallel.tp "
                f"{self.parallel.tp} processes, which does not come out even; change one of them"
            )
        return self

    @model_validator(mode="after")
    def _rows_fit_the_model(self) -> Self:
        if self.pretrain is None:
            return self
        length, positions = self.pretrain.data.sequence_length, self.model.max_position_embeddings
        if length > positions:
            raise ValueError(
                f"pretrain.data.sequence_length {length} is more than model.max_position_embeddings {positions}; "
                "raise the latter or lower the former"
            )
        return self
