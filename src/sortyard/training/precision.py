"""Number formats: which matrix products run in 16 bits, and the scaling that float16 gradients need."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

LOWEST_LOSS_SCALE = 1.0


class Precision:
    """Autocast and loss scaling of one run.

    Args:
        name: "fp32" leaves every tensor as it is; "bf16" and "fp16" autocast; only "fp16" scales the loss.
        device: where the model is.
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], *, device: torch.device):
        self.device = device
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite can still be the loss scale's fault rather than the data's."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > LOWEST_LOSS_SCALE

    def state(self) -> dict[str, Any]:
        """JSON values to continue from; empty unless the loss is scaled."""
        return dict(self.scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
