"""What distillation may set; imports no torch."""

from typing import Literal

from pydantic import Field

from sortyard.options import Options


class DistillationOptions(Options):
    """How a model follows its teacher's hidden states."""

    loss: Literal["relative_error", "cosine"] = Field(
        "relative_error",
        description="a token's squared error over the squared norm of its teacher's state, or 1 - their cosine",
    )
    layers: Literal["last", "all"] = Field(
        "last", description="which outputs are followed: the last layer's, or every layer's, averaged"
    )
    coef: float = Field(1.0, gt=0, le=1e6, description="weight beside the masked-LM loss, where both are asked for")
