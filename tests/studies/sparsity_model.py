"""A tiny masked language model and made-up text for the tests of `study sparsity`."""

import random
from functools import cache

import torch
from transformers import PreTrainedTokenizerFast

from sortyard import SortyardConfig, SortyardForMaskedLM
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.train import train_tokenizer


def made_up(words: int, *, seed: int) -> str:
    """Return words of random letters."""
    drawn = random.Random(seed)
    return " ".join("".join(drawn.choices("abcdefgh", k=drawn.randint(2, 5))) for _ in range(words))


@cache
def tiny_model() -> tuple[SortyardForMaskedLM, PreTrainedTokenizerFast]:
    """Return a model of 128 positions with random weights, and its tokenizer."""
    options = TokenizerOptions(algorithm="wordpiece", vocab_size=300, min_frequency=1)
    tokenizer = train_tokenizer([made_up(2000, seed=9)], options)
    torch.manual_seed(0)
    config = SortyardConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=128, attention="dense", num_experts=1, mask_token_id=tokenizer.mask_token_id,
    )  # fmt: skip
    return SortyardForMaskedLM(config), tokenizer
