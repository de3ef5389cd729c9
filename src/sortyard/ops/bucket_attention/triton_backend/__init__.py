"""Tree attention in Triton kernels: for CUDA devices, or anywhere under Triton's interpreter; README.md derives it.

Importing this package needs no Triton; its two functions import it when they are first called.
"""

import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from sortyard.ops.bucket_attention.groups import Group
from sortyard.ops.bucket_attention.spec import BucketSpec
from sortyard.ops.bucket_attention.tree_choice import TreeChoice


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None


def is_available(device: torch.device | str = "cuda") -> bool:
    """Whether the kernels can run on a device: Triton is installed, and there is a GPU or TRITON_INTERPRET=1.

    Args:
        device: Where the tensors lie.

    Returns:
        True if so.
    """
    if not _has_triton():
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    return torch.device(device).type == "cuda" and torch.cuda.is_available()


def is_compiled(device: torch.device | str = "cuda") -> bool:
    """Whether the kernels run on a device as a GPU's own code: is_available says so, and nobody interprets them.

    Args:
        device: Where the tensors lie.

    Returns:
        True if so.
    """
    return os.environ.get("TRITON_INTERPRET") != "1" and is_available(device)


def triton_tree_attention(
    q: Float[Tensor, "S H n K"],
    k: Float[Tensor, "S H n K"],
    v: Float[Tensor, "S H n K"],
    spec: BucketSpec,
    *,
    group: Group,
    causal: bool,
    dropout_p: float,
) -> Float[Tensor, "S H n K"]:
    """Bucket attention of a group of sequences by their trees; places at pads are zero.

    With dropout the plain torch path answers: the kernels drop nothing.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        spec: The attention's settings.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.
        dropout_p: Probability of dropping a weight.

    Returns:
        One output a query.
    """
    if dropout_p > 0:
        from sortyard.ops.bucket_attention.tree import tree_attention

        return tree_attention(q, k, v, spec, group=group, causal=causal, dropout_p=dropout_p)
    from sortyard.ops.bucket_attention.triton_backend.attend import tree_attention as attend

    return attend(q, k, v, spec, group=group, causal=causal)


def triton_choose(
    q: Float[Tensor, "S H n K"], k: Float[Tensor, "S H n K"], spec: BucketSpec, *, group: Group, causal: bool
) -> TreeChoice:
    """The trees and choices that `triton_tree_attention` makes of the same queries and keys.

    Args:
        q: Queries, in the dtype that attention gets them in.
        k: Keys, likewise.
        spec: The attention's settings.
        group: The sequences, of one tree shape.
        causal: Whether a query sees only keys at or before it.

    Returns:
        The choice.
    """
    from sortyard.ops.bucket_attention.triton_backend.stated_choice import state_choice

    return state_choice(q, k, spec, group=group, causal=causal)


__all__ = ["is_available", "is_compiled", "triton_choose", "triton_tree_attention"]
