"""The settings of routed experts; free of torch so that recipes can be checked without loading it."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sortyard.options import Options

MANY_EXPERTS = 32
MANY_EXPERTS_BIAS_RATE = 0.001
CAUSAL_CONTEXTS = ("running_mean", "ema", "none")


class ExpertOptions(Options):
    """How many experts a layer holds, how tokens choose among them and what keeps the choice balanced."""

    num_experts: int = Field(default=8, ge=1, le=4096, description="experts of a layer; 1 = a plain dense FFN")
    num_experts_per_tok: int = Field(default=2, ge=1, le=64, description="experts that process a token")
    num_expert_groups: int = Field(
        default=4, ge=1, le=1024, description="groups the experts are dealt into; 1 = flat routing"
    )
    num_groups_per_tok: int = Field(default=2, ge=1, le=64, description="groups a token's experts are taken from")
    moe_intermediate_size: int = Field(default=512, ge=1, le=1_048_576, description="inner width of one expert")
    router: Literal["context", "frozen_random", "token_hash"] = Field(
        default="context",
        description="who decides: a learned gate on token and context, or a control (fixed random gate, token id)",
    )
    context: Literal["mean", "running_mean", "ema", "none", "shuffled"] = Field(
        default="mean",
        description="what the gate sees besides the token: its sequence's mean, the causal running mean or "
        "exponential moving average, nothing, or another sequence's mean (control)",
    )
    ema_decay: float = Field(
        default=0.9, gt=0.0, lt=1.0, description="share of the past kept at each token by context: ema"
    )
    group_gate: Literal["experts", "context"] = Field(
        default="experts", description="groups scored by their best experts, or by a gate of their own on the context"
    )
    routing_weights: Literal["normalized", "straight_through"] = Field(
        default="normalized",
        description="chosen scores divided by their sum, or weight 1 with the score's gradient (upcycled models)",
    )
    balance: Literal["default", "literal", "switch", "none"] = Field(
        default="default", description="balance loss; literal = the published formula on mean gate values"
    )
    balance_coef: float = Field(default=0.01, ge=0.0, le=100.0, description="weight of the balance loss")
    bias_update_rate: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="step of the loss-free selection bias; 0 = off; 0.001 from 32 experts on unless it is set",
    )
    router_seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the control routers' fixed choices")

    @model_validator(mode="before")
    @classmethod
    def _bias_for_many_experts(cls, data: Any) -> Any:
        """From 32 experts on, turn the selection bias on unless a rate is given: balance losses leave many idle."""
        if not isinstance(data, dict) or "bias_update_rate" in data or data.get("router") == "token_hash":
            return data
        num_experts = data.get("num_experts")
        is_many = isinstance(num_experts, int) and num_experts >= MANY_EXPERTS
        return data | {"bias_update_rate": MANY_EXPERTS_BIAS_RATE} if is_many else data

    @model_validator(mode="after")
    def _check_choice(self) -> "ExpertOptions":
        if self.num_experts == 1:
            return self
        if self.num_experts % self.num_expert_groups:
            raise ValueError(
                f"num_experts={self.num_experts} cannot be dealt evenly into num_expert_groups="
                f"{self.num_expert_groups}; choose a divisor of num_experts (1 = flat routing)"
            )
        if self.num_groups_per_tok > self.num_expert_groups:
            raise ValueError(
                f"num_groups_per_tok={self.num_groups_per_tok} exceeds num_expert_groups={self.num_expert_groups}; "
                f"choose 1 to {self.num_expert_groups}"
            )
        if self.num_experts_per_tok % self.num_groups_per_tok:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} cannot be taken evenly from num_groups_per_tok="
                f"{self.num_groups_per_tok} groups; choose a multiple of num_groups_per_tok"
            )
        limit = self.num_groups_per_tok * (self.num_experts // self.num_expert_groups)
        if self.num_experts_per_tok > limit:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds the {limit} experts of the chosen groups; "
                f"lower it to at most {limit} or raise num_groups_per_tok"
            )
        return self

    @model_validator(mode="after")
    def _check_router(self) -> "ExpertOptions":
        if self.num_experts == 1:
            return self
        if self.group_gate == "context" and self.context == "none":
            raise ValueError("group_gate='context' needs a context; choose another context or group_gate='experts'")
        if self.router == "token_hash" and self.bias_update_rate > 0:
            raise ValueError(
                f"bias_update_rate={self.bias_update_rate} has no effect on router='token_hash', whose choice is "
                "fixed; set it to 0"
            )
        return self


def check_causal(options: ExpertOptions) -> None:
    """Refuse a context that would let a token's experts depend on later tokens.

    Args:
        options: settings of a causal model's experts.

    Raises:
        ValueError: if the context is a mean over the whole sequence.
    """
    reads_context = options.num_experts > 1 and options.router != "token_hash"
    if reads_context and options.context not in CAUSAL_CONTEXTS:
        raise ValueError(
            f"context={options.context!r} lets a causal model see later tokens; "
            f"choose one of {', '.join(CAUSAL_CONTEXTS)}"
        )
