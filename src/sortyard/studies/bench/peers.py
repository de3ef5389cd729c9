"""Other implementations of LSH attention, set to the same heads, widths and rounds.

Both take one tensor for queries and keys, as Reformer does. Neither is charged for projections: the layer of
transformers has its two replaced by slices of the input. Either may be missing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from sortyard.studies.bench.cases import Case, Inputs, Work

PACKAGES = ("transformers", "reformer-pytorch")
_CHUNK = 64
_ROUNDS = (1, 2)


@dataclass(frozen=True)
class Peer:
    """One implementation at one number of rounds.

    Attributes:
        name: Its name in results.
        note: What it is, in words.
        module: The Python package it needs.
        make: Its work on a case's inputs.
        rounds: Hash rounds.
        multiple: Lengths must be a multiple of it.
    """

    name: str
    note: str
    module: str
    make: Callable[[Inputs, Case], Work]
    rounds: int
    multiple: int

    def keys(self, length: int) -> float:
        """Keys that a query reads: its own chunk and the one before, in each round."""
        return float(min(length, 2 * _CHUNK) * self.rounds)

    def unfit(self, case: Case) -> str:
        """Why a case cannot be measured; empty where it can."""
        if find_spec(self.module) is None:
            return "not installed"
        return f"needs a length that is a multiple of {self.multiple}" if case.length % self.multiple else ""


class _Half(nn.Module):
    """Takes one half of the last dimension, where a projection used to be."""

    def __init__(self, index: int):
        super().__init__()
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        return x.chunk(2, -1)[self._index]


def _with_transformers(inputs: Inputs, case: Case, *, rounds: int) -> Work:
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    config = ReformerConfig(
        hidden_size=case.heads * case.head_width,
        num_attention_heads=case.heads,
        attention_head_size=case.head_width,
        num_hashes=rounds,
        num_buckets=None,
        lsh_attn_chunk_length=_CHUNK,
        lsh_attention_probs_dropout_prob=0.0,
        max_position_embeddings=case.length,
        axial_pos_embds=False,
        is_decoder=False,
    )
    layer = LSHSelfAttention(config).eval()
    layer.query_key, layer.value = _Half(0), _Half(1)
    layer.to(case.device)
    joined = torch.cat([_tokens_first(inputs.q), _tokens_first(inputs.v)], -1).detach()
    joined.requires_grad_(inputs.q.requires_grad)
    return Work(lambda: layer(joined).hidden_states, (joined,), _tokens_first(inputs.gradient))


def _with_reformer_pytorch(inputs: Inputs, case: Case, *, rounds: int) -> Work:
    # by name, as the package is optional and has no types
    layer = (
        import_module("reformer_pytorch")
        .LSHAttention(bucket_size=_CHUNK, n_hashes=rounds, causal=False)
        .eval()
        .to(case.device)
    )
    shared, v = inputs.q, inputs.v
    return Work(lambda: layer(shared.flatten(0, 1), v.flatten(0, 1))[0], (shared, v), inputs.gradient.flatten(0, 1))


def _tokens_first(x: Tensor) -> Tensor:
    """[1, H, n, K] -> [1, n, H K]."""
    return x.transpose(1, 2).flatten(2)


REFORMER_SIDES = tuple(
    Peer(
        name=f"{name}-{rounds}r",
        note=f"{words}, {rounds} hash round{'s' * (rounds > 1)}, chunks of {_CHUNK}",
        module=module,
        make=partial(make, rounds=rounds),
        rounds=rounds,
        multiple=multiple,
    )
    for name, words, module, make, multiple in (
        ("transformers", "transformers' LSHSelfAttention without its projections", "transformers",
         _with_transformers, _CHUNK),
        ("reformer-pytorch", "reformer-pytorch's LSHAttention", "reformer_pytorch",
         _with_reformer_pytorch, 2 * _CHUNK),
    )
    for rounds in _ROUNDS
)  # fmt: skip
