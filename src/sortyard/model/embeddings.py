"""Token, type and learned position embeddings."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sortyard.model.configuration import SortyardConfig


class Embeddings(nn.Module):
    """Sum of token, token-type and learned position embeddings, then a norm, dropout and, if narrower, a projection."""

    def __init__(self, config: SortyardConfig) -> None:
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        learned = config.position_embedding_type == "learned"
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width) if learned else None
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.norm = (
            nn.LayerNorm(width, eps=config.norm_eps, bias=config.use_bias) if config.embedding_norm else nn.Identity()
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        is_narrow = width != config.hidden_size
        self.projection = nn.Linear(width, config.hidden_size, bias=config.use_bias) if is_narrow else nn.Identity()

    def forward(
        self,
        inputs_embeds: Float[Tensor, "B T W"],
        positions: Int[Tensor, "B T"],
        token_type_ids: Int[Tensor, "B T"] | None = None,
        *,
        are_given: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """Add positions and token types to word embeddings.

        Args:
            inputs_embeds: word embeddings.
            positions: place of each token in its own sequence.
            token_type_ids: token types; type 0 where left out.
            are_given: whether the caller chose the positions; those that are counted are below T.

        Returns:
            The states that enter the first block.

        Raises:
            ValueError: if token types other than 0 are given to a model that has none, or a position has no learned
                embedding, which a traced graph does not look for among positions that are given.
        """
        hidden = inputs_embeds
        if self.token_type_embeddings is not None:
            types = torch.zeros_like(positions) if token_type_ids is None else token_type_ids
            hidden = hidden + self.token_type_embeddings(types)
        elif token_type_ids is not None and bool(token_type_ids.any()):
            raise ValueError("token_type_ids were given, but the model has none (type_vocab_size: 0); leave them out")
        if self.position_embeddings is not None:
            limit = self.position_embeddings.num_embeddings
            if positions.shape[1] > limit or (are_given and not torch.compiler.is_compiling()):
                _check_positions(positions, limit=limit)
            hidden = hidden + self.position_embeddings(positions)
        out: Tensor = self.projection(self.dropout(self.norm(hidden)))
        return out


def _check_positions(positions: Int[Tensor, "B T"], *, limit: int) -> None:
    if not positions.numel():
        return
    first, last = torch.stack(positions.aminmax()).tolist()  # a GPU cannot say which index it stumbled over
    if last >= limit:
        raise ValueError(
            f"a sequence of {last + 1} tokens is longer than max_position_embeddings {limit}; truncate it, or raise "
            "the limit"
        )
    if first < 0:
        raise ValueError(f"position_ids holds {first}; positions are counted from 0")
