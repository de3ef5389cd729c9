"""Encoders whose attention can be swapped for any function of queries, keys and values."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.modeling_utils import AttentionInterface

import sortyard  # noqa: F401  (registers the Auto classes)
from sortyard.errors import InputError, first_line
from sortyard.model.attention.layer import SelfAttention
from sortyard.ops.segments import Segments
from sortyard.studies.given import weights_digest

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps queries, keys and values [1, H, T, K] to outputs [1, H, T, K]; called once a layer, in order."""

_SWAPPED = "sortyard_fidelity"
_current: ContextVar[Attend] = ContextVar("_current")


class Encoder(Protocol):
    """A pretrained model and its tokenizer.

    Attributes:
        name: What results call it.
        weights: Digest of its parameters.
        tokenizer: Its tokenizer.
        native_length: Tokens that it was made for.
        can_stretch: Whether it takes more.
    """

    name: str
    weights: str
    tokenizer: Any
    native_length: int
    can_stretch: bool

    def states(self, ids: Int[Tensor, "1 T"], attend: Attend) -> Float[Tensor, "T D"]:
        """Return the last layer's token states of one sequence, every layer attending through `attend`."""
        ...


class BertEncoder:
    """A BERT of transformers; beyond its length the learned positions are stretched by linear interpolation."""

    can_stretch = True

    def __init__(self, name: str, *, model: Any, tokenizer: Any) -> None:
        AttentionInterface.register(_SWAPPED, _attend_current)
        self.name, self.tokenizer, self._model = name, tokenizer, model
        self.weights = weights_digest(model)
        model.config._attn_implementation = _SWAPPED
        self._table = model.embeddings.position_embeddings.weight.detach().clone()
        self.native_length = len(self._table)

    @torch.no_grad()
    def states(self, ids: Int[Tensor, "1 T"], attend: Attend) -> Float[Tensor, "T D"]:
        """Return the last layer's token states."""
        length = ids.shape[1]
        if length > self.native_length:
            stretched = F.interpolate(self._table.T[None], size=length, mode="linear", align_corners=True)
            table = stretched[0].T.contiguous()
        else:
            table = self._table
        embedding = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
        self._model.embeddings.position_embeddings = embedding
        token = _current.set(attend)
        try:
            states: Tensor = self._model(
                ids, token_type_ids=torch.zeros_like(ids), position_ids=torch.arange(length)[None]
            ).last_hidden_state
        finally:
            _current.reset(token)
        return states[0]


class SortyardEncoder:
    """A sortyard encoder, its layers' cores swapped."""

    can_stretch = False

    def __init__(self, name: str, *, model: Any, tokenizer: Any) -> None:
        self.name, self.tokenizer, self._model = name, tokenizer, model
        self.weights = weights_digest(model)
        self.native_length = int(model.config.max_position_embeddings)
        for layer in model.modules():
            if isinstance(layer, SelfAttention):
                layer.core = _SwappedCore()  # type: ignore[assignment]

    @torch.no_grad()
    def states(self, ids: Int[Tensor, "1 T"], attend: Attend) -> Float[Tensor, "T D"]:
        """Return the last layer's token states."""
        token = _current.set(attend)
        try:
            states: Tensor = self._model(ids).last_hidden_state
        finally:
            _current.reset(token)
        return states[0]


class _SwappedCore(nn.Module):
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        segments: Segments,
        dropout_p: float,
        global_tokens: Bool[Tensor, "B T"] | None = None,
    ) -> Tensor:
        del segments, dropout_p, global_tokens  # one whole row, in evaluation
        return _current.get()(q, k, v)

    def sparsity(self, segments: Segments) -> float:
        """Tell the model that nothing is known about the swapped attention."""
        del segments
        return 0.0


def _attend_current(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    del module, attention_mask  # one sequence without padding
    return _current.get()(query, key, value).transpose(1, 2).contiguous(), None


def load_encoder(source: str, *, name: str) -> Encoder:
    """Load a pretrained encoder whose attention this study can swap.

    Args:
        source: A model's folder, or a hub name.
        name: What results call it.

    Returns:
        The encoder in float32 on the CPU, in evaluation mode.

    Raises:
        InputError: nothing loads, the model is causal, or of a kind that this study does not know.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True).eval()
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise InputError(f"--model {source}: no encoder with a tokenizer can be loaded: {first_line(error)}") from error
    kind = model.config.model_type
    if getattr(model.config, "causal", False) or getattr(model.config, "is_decoder", False):
        raise InputError(f"--model {source}: is causal; this study compares bidirectional attention")
    if kind == "bert":
        return BertEncoder(name, model=model, tokenizer=tokenizer)
    if kind == "sortyard":
        return SortyardEncoder(name, model=model, tokenizer=tokenizer)
    raise InputError(f"--model {source}: is of type {kind!r}; expected a BERT or a sortyard model")
