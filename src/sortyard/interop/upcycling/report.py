"""What became of every weight."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class UpcyclingReport:
    """An account of one upcycling.

    Attributes:
        source: folder, hub name or class of the dense checkpoint.
        family: its `model_type`.
        head: the result's head.
        is_exact: whether the result computes what the checkpoint did, up to `exact_up_to` tokens.
        exact_up_to: longest sequence for which that holds; None where the result is not exact.
        inexact_because: why it does not hold, if it does not.
        num_experts: experts of a layer.
        expert_layers: numbers of the layers that have them.
        parameters: of the result.
        active_parameters: of those, the ones that a token goes through.
        source_parameters: of the checkpoint.
        mapped: the checkpoint's weights and where each went.
        unused: weights of the checkpoint that the result has no place for.
        new: weights of the result that the checkpoint had nothing for.
    """

    source: str
    family: str
    head: str
    is_exact: bool
    exact_up_to: int | None
    inexact_because: tuple[str, ...]
    num_experts: int
    expert_layers: tuple[int, ...]
    parameters: int
    active_parameters: int
    source_parameters: int
    mapped: dict[str, tuple[str, ...]]
    unused: tuple[str, ...]
    new: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)
