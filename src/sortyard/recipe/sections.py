"""The sections of a recipe, composed of the parts' own options."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sortyard.data.options import CorpusOptions, MaskingOptions, TaskOptions
from sortyard.model.options import ModelOptions
from sortyard.options import Options
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.training.options import LoopOptions, OptimizerOptions, ScheduleOptions


class PretrainSection(Options):
    """Phase 1: language modelling on text."""

    data: CorpusOptions = Field(description="the text to learn from")
    objective: Literal["masked_lm", "causal_lm"] = Field(
        "masked_lm", description="predict masked tokens (an encoder), or the next token (a causal model)"
    )
    masking: MaskingOptions = Field(default_factory=MaskingOptions, description="which tokens masked_lm hides")
    loop: LoopOptions = Field(description="how long, in which batches, and what is written down")
    optimizer: OptimizerOptions = Field(default_factory=OptimizerOptions, description="AdamW")
    schedule: ScheduleOptions = Field(default_factory=ScheduleOptions, description="the learning rate over the run")


class FinetuneSection(Options):
    """Phase 2: a task on labelled examples."""

    task: TaskOptions = Field(description="the task and its files")
    loop: LoopOptions = Field(description="how long, in which batches, and what is written down")
    optimizer: OptimizerOptions = Field(default_factory=OptimizerOptions, description="AdamW")
    schedule: ScheduleOptions = Field(default_factory=ScheduleOptions, description="the learning rate over the run")


class Recipe(Options):
    """One run from text to a fine-tuned model; each verb reads its own section, so one file serves them all."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="names the run folder: letters, digits, dot, dash, underscore; the file's own name if left out",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of initialisation, data order, masks and dropout")
    tokenizer: TokenizerOptions = Field(default_factory=TokenizerOptions, description="trained on the text, or loaded")
    model: ModelOptions = Field(default_factory=ModelOptions, description="the encoder; names are those of its config")
    pretrain: PretrainSection | None = Field(None, description="phase 1: language modelling on text")
    finetune: FinetuneSection | None = Field(None, description="phase 2: a task on labelled examples")

    @model_validator(mode="after")
    def _causal_model_is_causal(self) -> Self:
        if self.pretrain is not None and self.pretrain.objective == "causal_lm":
            from sortyard.model.experts.options import check_causal

            check_causal(self.model)
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
