"""How a dense checkpoint becomes a sparse model; imports no torch."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sortyard.model.attention.options import AttentionOptions
from sortyard.recipe.checking import check
from sortyard.recipe.yaml_tree import Tree

Head = Literal["base", "masked_lm", "sequence_classification", "token_classification", "question_answering"]


class UpcyclingOptions(AttentionOptions):
    """What `upcycle` takes; the attention's settings are those of a recipe's model section."""

    num_experts: int = Field(8, ge=1, le=4096, description="experts of a layer; 1 keeps the dense feed-forward layers")
    num_groups: int = Field(
        4, ge=1, le=1024, description="groups of experts; with shards and shared the pieces a layer is cut into"
    )
    experts_from: Literal["shards", "copies", "drop", "shared"] = Field(
        "shards",
        description="what experts are made of: replicas of a layer's shards (exact, learns at once), whole copies "
        "(exact, the router learns late), copies drawn anew in part, or new ones beside the kept dense layer",
    )
    num_experts_per_tok: int = Field(
        2, ge=1, le=64, description="experts of a token (copies, drop); shards and shared take one of each group"
    )
    drop_ratio: float = Field(0.5, gt=0.0, lt=1.0, description="share of each copy's inner units drawn anew (drop)")
    expert_layers: tuple[int, ...] | None = Field(
        None, description="numbers of the layers that get experts, from 0; left out, all"
    )
    head: Literal["auto"] | Head = Field(
        "auto", description="task head of the result; auto takes the one the checkpoint was saved with"
    )
    max_position_embeddings: int | None = Field(
        None, ge=8, le=16_777_216, description="longest sequence, where it shall be longer than the checkpoint's"
    )
    positions: Literal["stretch", "keep"] = Field(
        "stretch",
        description="how positions are extended: learned ones interpolated and the rotary base raised, or those that "
        "are there kept (learned ones repeat)",
    )
    attention_probs_dropout_prob: float | None = Field(
        None, ge=0, lt=1, description="dropout on attention weights in training; left out, the checkpoint's"
    )
    classifier_pooling: Literal["cls", "mean"] | None = Field(
        None, description="what a sequence classifier reads: the first token or the mean; left out, as the checkpoint's"
    )
    context: Literal["mean", "running_mean", "ema", "none"] = Field(
        "mean", description="what the gate sees besides the token"
    )
    group_gate: Literal["experts", "context"] = Field(
        "experts", description="groups scored by their best experts, or by a gate of their own on the context"
    )
    balance: Literal["default", "literal", "switch", "none"] = Field("default", description="balance loss")
    balance_coef: float = Field(0.01, ge=0.0, le=100.0, description="weight of the balance loss")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of all new weights")

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        if self.num_experts == 1:
            return self
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"num_experts {self.num_experts} cannot be dealt evenly into num_groups {self.num_groups}; "
                f"choose a multiple, such as {2 * self.num_groups}, or another num_groups"
            )
        if self.num_experts == self.num_groups and self.takes_one_of_each_group:
            raise ValueError(
                f"num_experts {self.num_experts} in num_groups {self.num_groups} leaves a token nothing to choose: one "
                f"expert is taken of each group; choose num_experts {2 * self.num_groups} or fewer groups"
            )
        return self

    @property
    def takes_one_of_each_group(self) -> bool:
        """Whether a token's experts are one of every group."""
        return self.experts_from in ("shards", "shared")

    def is_expert_layer(self, layer: int) -> bool:
        """Whether a layer gets experts."""
        return self.num_experts > 1 and (self.expert_layers is None or layer in self.expert_layers)


def upcycling_options(settings: Tree | dict[str, Any]) -> UpcyclingOptions:
    """Validate settings.

    Args:
        settings: the fields of `UpcyclingOptions`, with the place of each if known.

    Returns:
        The options.

    Raises:
        InputError: a key is unknown or a value is not allowed; the message holds every mistake.
    """
    tree = settings if isinstance(settings, Tree) else Tree(settings, {(): "upcycle"})
    return check(UpcyclingOptions, tree)
