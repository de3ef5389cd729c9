"""What a run would cost, worked out before anything starts."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sortyard.jobs.pretraining import target_share
from sortyard.jobs.sections import adapt_section, finetune_section, pretrain_section
from sortyard.recipe import Recipe
from sortyard.training.options import LoopOptions

if TYPE_CHECKING:
    from torch import nn

GIB = 1 << 30
Phase = Literal["pretrain", "adapt", "finetune"]


@dataclass(frozen=True)
class Plan:
    """The size of one phase.

    Attributes:
        phase: Which section of the recipe.
        parameters: All of the model's.
        active_parameters: Those that one token passes through.
        memory_bytes: Estimated peak of a training step.
        samples_per_step: Rows or examples of one optimizer step.
        micro_batches: Micro-batches of one step, and their size.
        sequence_length: Tokens of a row, or at most of an example.
        steps: Optimizer steps; None where they depend on the amount of data.
        epochs: Passes over the data; None where steps are set.
        max_seconds: Training time after which the run ends earlier; 0 = no such limit.
        tokens: At most, over all steps; None where the steps are.
        sparsity: Share of query-key pairs that attention leaves out of one sequence of that length; None for a model of
            another library.
    """

    phase: Phase
    parameters: int
    active_parameters: int
    memory_bytes: int
    samples_per_step: int
    micro_batches: tuple[int, int]
    sequence_length: int
    steps: int | None
    epochs: float | None
    max_seconds: float
    tokens: int | None
    sparsity: float | None

    def record(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Writes the plan for a human reader."""
        count, size = self.micro_batches
        step = f"{self.samples_per_step:,} sequences = {count} x {size:,} of {self.sequence_length:,} tokens"
        length = f"{self.steps:,} steps" if self.steps is not None else f"{self.epochs:g} epochs over the data"
        length += f", or as many as fit into {self.max_seconds / 60:g} minutes" if self.max_seconds else ""
        tokens = f", at most {self.tokens:,} tokens" if self.tokens is not None else ""
        sparsity = (
            "" if self.sparsity is None else f"\n  sparsity    {self.sparsity:.0%} of an unbroken sequence's pairs"
        )
        return (
            f"{self.phase}\n"
            f"  parameters  {self.parameters:,} total, {self.active_parameters:,} active\n"
            f"  step        {step}\n"
            f"  length      {length}{tokens}\n"
            f"  memory      about {self.memory_bytes / GIB:.2f} GiB, and the libraries' own on top"
            f"{sparsity}"
        )


def plan_pretraining(recipe: Recipe) -> Plan:
    """Works out the cost of a recipe's pretraining; builds shapes only, reads no data.

    Raises:
        InputError: The recipe has no pretrain section.
    """
    section = pretrain_section(recipe)
    share = target_share(section)
    model = pretraining_shapes(recipe)
    return _plan(model, phase="pretrain", loop=section.loop, length=section.data.sequence_length, target_share=share)


def pretraining_shapes(recipe: Recipe) -> "nn.Module":
    """Builds the model that a recipe pretrains, without its numbers.

    Raises:
        InputError: The recipe has no pretrain section.
    """
    from sortyard.jobs.corpora import existing_tokenizer

    section = pretrain_section(recipe)
    tokenizer = existing_tokenizer(section.data, tokenizer=recipe.tokenizer)
    return _shapes(recipe, head=section.objective, tokenizer=tokenizer)


def plan_finetuning(recipe: Recipe, *, start: "nn.Module | None" = None) -> Plan:
    """Works out the cost of a recipe's fine-tuning.

    Args:
        recipe: With a finetune section.
        start: The model to be fine-tuned; None stands for one of the recipe's model section.

    Raises:
        InputError: The recipe has no finetune section.
    """
    section = finetune_section(recipe)
    model = (
        start if start is not None else _shapes(recipe, head="sequence_classification", tokenizer=recipe.tokenizer.path)
    )
    return _plan(model, phase="finetune", loop=section.loop, length=section.task.max_length, target_share=0.0)


def plan_adapting(recipe: Recipe, *, start: "nn.Module") -> Plan:
    """Works out the cost of adapting a model, its teacher's weights included.

    Args:
        recipe: With an adapt section in which nothing is left open.
        start: The model's shapes.

    Raises:
        InputError: The recipe has no adapt section.
    """
    from sortyard.evaluation.activations import FLOAT_BYTES

    section = adapt_section(recipe)
    share = 0.0 if section.objective == "distil" else section.masking.probability
    plan = _plan(start, phase="adapt", loop=section.loop, length=section.data.sequence_length, target_share=share)
    return replace(plan, memory_bytes=plan.memory_bytes + FLOAT_BYTES * plan.parameters)


def _shapes(recipe: Recipe, *, head: str, tokenizer: Path | None) -> "nn.Module":
    """The recipe's model; its vocabulary is that of the tokenizer where there is one, else the largest it may be."""
    from sortyard.data.vocabulary import Vocabulary
    from sortyard.evaluation.cost import meta_model
    from sortyard.model.configuration import SortyardConfig
    from sortyard.tokenizer.train import load_tokenizer

    size = recipe.tokenizer.vocab_size
    if tokenizer is not None and tokenizer.is_dir():
        size = Vocabulary.of(load_tokenizer(tokenizer)).size
    config = SortyardConfig.from_options(recipe.model, vocab_size=size, causal=head == "causal_lm", num_labels=2)
    model: nn.Module = meta_model(config, head=head)
    return model


def _plan(model: "nn.Module", *, phase: Phase, loop: LoopOptions, length: int, target_share: float) -> Plan:
    from sortyard.evaluation.cost import parameter_counts, training_memory

    counts = parameter_counts(model)
    samples = loop.micro_batch_size * loop.accumulation_steps
    if getattr(model.config, "model_type", "") == "sortyard":
        memory = training_memory(
            model,
            micro_batch_size=loop.micro_batch_size,
            length=length,
            precision=loop.precision,
            activation_checkpointing=loop.activation_checkpointing,
            activation_checkpointing_every=loop.activation_checkpointing_every,
            target_share=target_share,
        ).total
    else:
        memory = 16 * counts.total  # weights, gradients and AdamW's two moments; its activations are not known
    return Plan(
        phase=phase,
        parameters=counts.total,
        active_parameters=counts.active,
        memory_bytes=memory,
        samples_per_step=samples,
        micro_batches=(loop.accumulation_steps, loop.micro_batch_size),
        sequence_length=length,
        steps=loop.steps,
        epochs=loop.epochs,
        max_seconds=loop.max_seconds,
        tokens=None if loop.steps is None else loop.steps * samples * length,
        sparsity=_sparsity(model, length=length),
    )


def _sparsity(model: Any, *, length: int) -> float | None:
    from sortyard.ops import expected_sparsity

    config = model.config
    if getattr(config, "model_type", "") != "sortyard":
        return None
    return expected_sparsity(config.options().to_spec(), length, config.causal) if config.attention == "bucket" else 0.0
