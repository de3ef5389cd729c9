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

    def loss_scale(self) -> float:
        """Factor on the loss of the next step; 1 unless the loss is scaled."""
        if not self.scaler.is_enabled():
            return 1.0
        self.scaler.scale(torch.zeros((), device=self.device))  # the scale is made on first use
        return float(self.scaler.get_scale())

    def settle(self, *, overflowed: bool) -> None:
        """Move the loss scale after a step whose gradients were looked through elsewhere, as `scaler.update` does."""
        if not self.scaler.is_enabled():
            return
        torch._amp_update_scale_(
            self.scaler._scale,  # type: ignore[arg-type]
            self.scaler._growth_tracker,  # type: ignore[arg-type]
            torch.full((1,), float(overflowed), device=self.device),
            self.scaler.get_growth_factor(),
            self.scaler.get_backoff_factor(),
            self.scaler.get_growth_interval(),
        )
        self.scaler._scale.clamp_(min=LOWEST_LOSS_SCALE)  # type: ignore[union-attr]

    def state(self) -> dict[str, Any]:
        """JSON values to continue from; empty unless the loss is scaled."""
        return dict(self.scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, or start anew where the loss was not scaled before."""
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)
