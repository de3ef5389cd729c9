"""What a recipe's pretraining asks of any layout."""

from dataclasses import dataclass
from typing import Any

from sortyard.jobs.layouts.weights import Weight, read_weights
from sortyard.parallel.options import ActivationCheckpointing
from sortyard.recipe import PretrainSection, Recipe


@dataclass(frozen=True)
class Work:
    """One optimizer step, whoever takes it.

    Attributes:
        config: The model's configuration.
        weights: Its parameters.
        rows: Of a micro-batch, over all processes.
        micro_batches: Of a step.
        length: Tokens of a row.
        target_share: Share of the tokens whose logits are computed.
        half: Whether products run in 16 bits.
        checkpointing: What layers compute again.
        layer_flops: Of one token's forward pass through one layer, on average.
        head_flops: Of one target's.
        keys: Keys that a query reads, layer by layer.
    """

    config: Any
    weights: list[Weight]
    rows: int
    micro_batches: int
    length: int
    target_share: float
    half: bool
    checkpointing: ActivationCheckpointing
    layer_flops: float
    head_flops: float
    keys: list[float]

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.keys)

    @property
    def recomputes(self) -> bool:
        """Whether activations are computed again; selective counts as full."""
        return self.checkpointing != "none"

    @property
    def operand_bytes(self) -> int:
        """Bytes of a number in a product."""
        return 2 if self.half else 4

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.micro_batches * self.length


def read_work(recipe: Recipe) -> Work:
    """Builds a recipe's model for pretraining, shapes only.

    Raises:
        InputError: The recipe has no pretrain section.
    """
    from sortyard.evaluation.cost import forward_flops_per_token, head_flops_per_target, keys_per_query
    from sortyard.jobs.plan import pretraining_shapes
    from sortyard.jobs.sections import pretrain_section

    section: PretrainSection = pretrain_section(recipe)
    model: Any = pretraining_shapes(recipe)
    loop, length, count = section.loop, section.data.sequence_length, int(model.config.num_hidden_layers)
    return Work(
        config=model.config,
        weights=read_weights(model),
        rows=loop.micro_batch_size,
        micro_batches=loop.accumulation_steps,
        length=length,
        target_share=section.masking.probability if section.objective == "masked_lm" else 1.0,
        half=loop.precision != "fp32",
        checkpointing=loop.activation_checkpointing,
        layer_flops=forward_flops_per_token(model, length=length) / count,
        head_flops=head_flops_per_target(model),
        keys=[keys_per_query(model.config, layer=layer, length=length) for layer in range(count)],
    )
