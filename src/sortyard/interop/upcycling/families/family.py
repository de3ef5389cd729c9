"""What upcycling needs to know of an architecture: its settings and the names of its weights, in our terms."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from sortyard.errors import InputError
from sortyard.ops.grouped_mlp import check_activation

_SAME_ACTIVATION = {"gelu_python": "gelu", "gelu_fast": "gelu_new", "swish": "silu"}


class Family:
    """One architecture.

    Names are compared without the encoder's prefix ("bert."), so that a base model and one with a head look alike.
    """

    layer_pattern: ClassVar[str]
    layer_parts: ClassVar[Mapping[str, str]]
    encoder_parts: ClassVar[Mapping[str, str]]
    head_parts: ClassVar[Mapping[str, Mapping[str, str]]]

    def settings(self, config: Any, *, head: str) -> dict[str, Any]:
        """Translate a configuration.

        Args:
            config: the checkpoint's.
            head: a head of ours, or "discriminator".

        Returns:
            Fields of `SortyardConfig` that make a dense model of the same function.
        """
        raise NotImplementedError

    def convert(self, name: str, tensor: Tensor, *, config: Any, head: str) -> Iterable[tuple[str, Tensor]]:
        """Translate one weight.

        Args:
            name: its name without the encoder's prefix.
            tensor: its value.
            config: the checkpoint's configuration.
            head: as in `settings`.

        Returns:
            Our names with values; empty if the weight has no place in our model.
        """
        del config
        found = self._our_name(name, head=head)
        return [] if found is None else [(found, tensor)]

    def _our_name(self, name: str, *, head: str) -> str | None:
        module, _, leaf = name.rpartition(".")
        if layer := re.fullmatch(self.layer_pattern, module):
            part = self.layer_parts.get(layer[2])
            return None if part is None else f"model.encoder.layers.{layer[1]}.{part}.{leaf}"
        if module in self.encoder_parts:
            return f"model.{self.encoder_parts[module]}.{leaf}"
        if module in self.head_parts.get(head, {}):
            return f"{self.head_parts[head][module]}.{leaf}"
        return None


def activation_of(name: Any, *, field: str) -> str:
    """Our name of an activation.

    Args:
        name: transformers' name.
        field: where it stands in the checkpoint's configuration.

    Raises:
        InputError: experts cannot compute it.
    """
    ours = _SAME_ACTIVATION.get(name, name)
    try:
        check_activation(ours)
    except ValueError as error:
        raise InputError(f"{field}: {error}") from error
    return str(ours)
