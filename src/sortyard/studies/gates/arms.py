"""The arms of the gate study: who chooses a token's experts, and the dense layers beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sortyard.model.factory import build_model
from sortyard.model.modeling import SortyardPreTrainedModel
from sortyard.model.options import ModelOptions

CONTEXT, STATIC, SHUFFLED, DENSE_TOTAL = "context", "static", "shuffled", "dense-total"
ARMS = {
    CONTEXT: "gate on the token and its sequence's mean",
    STATIC: "gate on the token alone",
    SHUFFLED: "gate on the token and another sequence's mean",
    "frozen-random": "a random gate on token and mean that never learns",
    "token-hash": "experts by a hash of the token's id",
    "dense-active": "one layer as wide as the experts of a token",
    DENSE_TOTAL: "one layer as wide as all experts",
}


@dataclass(frozen=True)
class Trainee:
    """What every arm of a task trains: a model whose options are those of the context arm, and how.

    Attributes:
        head: A key of `sortyard.model.factory.HEADS`.
        options: The model with experts and context `mean`.
        vocab_size: Token ids.
        lr: Highest learning rate.
        batch_size: Sequences of a step.
        length: Tokens of a sequence.
        predictions: Predictions of a step, for counting arithmetic.
        fields: Further fields of the configuration.
    """

    head: str
    options: ModelOptions
    vocab_size: int
    lr: float
    batch_size: int
    length: int
    predictions: int
    fields: Mapping[str, Any] = field(default_factory=dict)


def options_of(arm: str, base: ModelOptions, *, seed: int) -> ModelOptions:
    """Change a model's options to those of an arm.

    Args:
        arm: A key of `ARMS`.
        base: The options of the context arm.
        seed: Seed of the choices that do not learn.

    Returns:
        The options; the dense layers are as wide as k or all of the experts, so that parameters are equal but for
        the gate's.
    """
    inner = base.moe_intermediate_size
    changes: dict[str, dict[str, Any]] = {
        "context": {},
        "static": {"context": "none"},
        "shuffled": {"context": "shuffled"},
        "frozen-random": {"router": "frozen_random", "router_seed": seed},
        "token-hash": {"router": "token_hash", "router_seed": seed},
        "dense-active": {"num_experts": 1, "intermediate_size": base.num_experts_per_tok * inner},
        "dense-total": {"num_experts": 1, "intermediate_size": base.num_experts * inner},
    }
    return ModelOptions(**base.model_dump() | changes[arm])


def build_arm(arm: str, trainee: Trainee, *, seed: int) -> SortyardPreTrainedModel:
    """Build an arm's model, whose weights begin as those of the context arm wherever it has them too.

    A shared beginning, like the shared order of the data, makes differences within a seed smaller than between seeds.

    Args:
        arm: A key of `ARMS`.
        trainee: The task's model.
        seed: Seed of the weights.

    Returns:
        The model in training mode.
    """
    model = _build(arm, trainee, seed=seed)
    if arm != CONTEXT:
        _begin_alike(model, _build(CONTEXT, trainee, seed=seed))
    return model


def _build(arm: str, trainee: Trainee, *, seed: int) -> SortyardPreTrainedModel:
    return build_model(
        options_of(arm, trainee.options, seed=seed),
        head=trainee.head,
        vocab_size=trainee.vocab_size,
        tokenizer_ids={"pad_token_id": 0},
        seed=seed,
        **trainee.fields,
    )


@torch.no_grad()
def _begin_alike(model: SortyardPreTrainedModel, reference: SortyardPreTrainedModel) -> None:
    known = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        other = known.get(name)
        if other is None:
            continue
        if name.endswith("router.gate"):  # a static gate lacks the columns of the context
            other = other[:, : parameter.shape[1]]
        if other.shape == parameter.shape:
            parameter.copy_(other)
