"""More positions than the checkpoint was trained with."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sortyard.errors import InputError
from sortyard.interop.upcycling.options import UpcyclingOptions

TABLE = "model.embeddings.position_embeddings.weight"


def extended(settings: dict[str, Any], *, options: UpcyclingOptions) -> dict[str, Any]:
    """Settings of the longer model.

    Args:
        settings: fields of `SortyardConfig` that describe the checkpoint.
        options: the length asked for, if any.

    Returns:
        The fields with the new length and, for stretched rotary positions, the raised base of the layers that see the
        whole sequence: theta' = theta * (new / old)^(K / (K - 2)), which stretches the slowest rotation by new / old
        and leaves the fastest as it is.

    Raises:
        InputError: the length is shorter than the checkpoint's.
    """
    old, new = settings["max_position_embeddings"], options.max_position_embeddings
    if new is None or new == old:
        return settings
    if new < old:
        raise InputError(
            f"max_position_embeddings={new} is less than the checkpoint's {old}; leave it out, or ask for more"
        )
    settings = settings | {"max_position_embeddings": new}
    if settings["position_embedding_type"] != "rope" or options.positions == "keep":
        return settings
    head_width = settings["hidden_size"] // settings["num_attention_heads"]
    rope = settings["rope_parameters"]
    factor = (new / old) ** (head_width / max(head_width - 2, 1))
    return settings | {"rope_parameters": rope | {"rope_theta": rope["rope_theta"] * factor}}


def extend_table(weights: dict[str, Tensor], *, length: int, options: UpcyclingOptions) -> None:
    """Lengthen the table of learned positions, where there is one.

    Args:
        weights: our names and tensors; changed in place.
        length: rows the table shall have.
        options: whether rows are interpolated, first and last staying the ends, or repeat from the start.
    """
    if TABLE not in weights or len(weights[TABLE]) == length:
        return
    table = weights[TABLE]
    if options.positions == "keep":
        weights[TABLE] = table.repeat(-(-length // len(table)), 1)[:length]
        return
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    weights[TABLE] = F.interpolate(wide.T[None], size=length, mode="linear", align_corners=True)[0].T.to(table.dtype)
