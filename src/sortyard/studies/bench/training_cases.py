"""What `bench training` runs: models of one size, and the token batches of a step."""

import math
import random
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from sortyard.model.factory import build_model
from sortyard.model.modeling import SortyardPreTrainedModel
from sortyard.model.options import ModelOptions

Batch = dict[str, Tensor]
NUM_EXPERTS, EXPERTS_PER_TOK, HEAD_WIDTH = 8, 2, 64
ROWS, MICRO_BATCHES = 32, 8
MIX_LONGEST = 512
# Tokens of a document in the mix: log-normal, as lengths of texts are.
_MIX_MEDIAN, _MIX_SPREAD, _MIX_SHORTEST = 150, 0.8, 16
_FIRST_WORD = 5
_POSITIONS = 2**20  # rotary: no parameters hang on it
IGNORED = -100


@dataclass(frozen=True)
class TrainingCase:
    """What one cell measures.

    Attributes:
        topic: What is compared, a key of `TOPICS`.
        length: Tokens of a sequence, or of the longest one.
        tokens: Tokens of a step.
        hidden_size: Width, a multiple of 64.
        layers: Layers.
        vocabulary: Token ids.
        seed: Seed of weights, tokens and lengths.
        device: Where it runs.
    """

    topic: str
    length: int
    tokens: int
    hidden_size: int
    layers: int
    vocabulary: int
    seed: int
    device: str

    @property
    def line(self) -> str:
        """What it has in common with the cases of other lengths."""
        return self.topic

    @property
    def key(self) -> str:
        """The cell's name in a result."""
        return f"{self.line}/{self.length}"

    def at(self, length: int) -> Self:
        """Return the same at another length, of the same number of rows."""
        return replace(self, length=length, tokens=max(1, self.tokens // self.length) * length)

    def size(self) -> Self:
        """Return the same without what a model knows nothing of."""
        return replace(self, topic="", length=0, tokens=0)

    def fields(self) -> dict[str, Any]:
        """Return what the case is made from, as JSON values."""
        return asdict(self)


def make_model(case: TrainingCase, *, is_dense: bool, **changes: Any) -> SortyardPreTrainedModel:
    """Build a masked language model.

    Args:
        case: Gives its size.
        is_dense: Whether it is the twin with dense attention and dense layers as wide as a token's experts together.
        changes: Options of the model.

    Returns:
        The model in training mode, without dropout, on the CPU.
    """
    width = 2 * case.hidden_size // 3
    experts: dict[str, Any] = {"num_experts": NUM_EXPERTS, "num_experts_per_tok": EXPERTS_PER_TOK}
    dense = {"attention": "dense", "num_experts": 1, "intermediate_size": EXPERTS_PER_TOK * width}
    options = {
        "hidden_size": case.hidden_size, "num_hidden_layers": case.layers,
        "num_attention_heads": case.hidden_size // HEAD_WIDTH, "moe_intermediate_size": width,
        "max_position_embeddings": _POSITIONS, **(dense if is_dense else experts), **changes,
    }  # fmt: skip
    ids: dict[str, int | None] = {"pad_token_id": 0}
    return build_model(
        ModelOptions(**options), head="masked_lm", vocab_size=case.vocabulary, tokenizer_ids=ids, seed=case.seed
    )


def equal_rows(case: TrainingCase, *, micro_batches: int = 1) -> list[Batch]:
    """A step of rows without padding; the later a row, the more of its tokens are targets.

    Args:
        case: Gives length and tokens.
        micro_batches: Parts of the step; the same rows whatever their number.
    """
    rows = max(micro_batches, case.tokens // case.length)
    whole = _with_targets(_words(case, rows, case.length), torch.ones(rows, case.length, dtype=torch.long), case)
    parts = zip(*(tensor.chunk(micro_batches) for tensor in whole.values()), strict=True)
    return [dict(zip(whole, part, strict=True)) for part in parts]


def mixed_lengths(case: TrainingCase) -> list[int]:
    """Lengths of documents, as many as have about the case's tokens together."""
    drawn, lengths = random.Random(case.seed), [min(case.length, case.tokens)]
    while sum(lengths) < case.tokens:
        length = round(drawn.lognormvariate(math.log(_MIX_MEDIAN), _MIX_SPREAD))
        lengths.append(min(max(length, _MIX_SHORTEST), case.length))
    return lengths


def padded_rows(case: TrainingCase) -> list[Batch]:
    """The mix, a row for each document, padded to the longest."""
    lengths = mixed_lengths(case)
    real = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return [_with_targets(_words(case, *real.shape), real, case)]


def packed_rows(case: TrainingCase) -> list[Batch]:
    """The mix, document after document, cut where a row ends."""
    lengths = mixed_lengths(case)
    rows = -(-sum(lengths) // case.length)
    places = rows * case.length
    ends = torch.tensor(lengths).cumsum(0)
    cuts = torch.cat([torch.arange(0, places + 1, case.length), ends]).unique()  # type: ignore[no-untyped-call]
    real = (torch.arange(places) < sum(lengths)).long().view(rows, case.length)
    return [_with_targets(_words(case, *real.shape), real, case) | {"cu_seqlens": cuts.int()}]


def _words(case: TrainingCase, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed)
    return torch.randint(_FIRST_WORD, case.vocabulary, (rows, length), generator=generator)


def _with_targets(ids: Tensor, real: Tensor, case: TrainingCase) -> Batch:
    generator = torch.Generator().manual_seed(case.seed + 1)
    share = torch.linspace(0.1, 0.2, len(ids))[:, None]
    hidden = (torch.rand(ids.shape, generator=generator) < share) & real.bool()
    return {"input_ids": ids * real, "attention_mask": real, "labels": ids.masked_fill(~hidden, IGNORED)}
