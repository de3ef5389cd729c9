"""What training on one token of a data set takes."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sortyard.training.efficiency import TokenFlops

FORWARD_AND_BACKWARD = 3
GROUPS = 16


def token_flops(model: Any, *, lengths: NDArray[np.int64], target_share: float) -> "TokenFlops | None":
    """Counts the arithmetic of a token, on average over sequences.

    Args:
        model: The model to train.
        lengths: Of a sample of its sequences, in tokens; taken together in groups of like length.
        target_share: Predictions of the head for each token.

    Returns:
        The FLOPs, or None for a model of another library.
    """
    from sortyard.evaluation.cost import forward_flops_per_token, head_flops_per_target
    from sortyard.training.efficiency import TokenFlops

    if getattr(model.config, "model_type", "") != "sortyard":
        return None
    groups = [group for group in np.array_split(np.sort(lengths), GROUPS) if group.sum()]
    weights = np.array([group.sum() for group in groups], dtype=np.float64) / lengths.sum()
    means = [round(float(group @ group) / int(group.sum())) for group in groups]
    own, dense = (
        sum(w * forward_flops_per_token(model, length=n, attention=kind) for w, n in zip(weights, means, strict=True))
        for kind in ("own", "dense")
    )
    head = target_share * head_flops_per_target(model)
    return TokenFlops(float(FORWARD_AND_BACKWARD * (own + head)), float(FORWARD_AND_BACKWARD * (dense + head)))
