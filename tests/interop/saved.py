"""Small models in folders, with their tokenizer, as users keep them."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from sortyard.data.vocabulary import Vocabulary
from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.train import train_tokenizer

TEXTS = [" ".join(["the saw cuts a log into boards"] * (1 + n % 9)) + f" and then number {n}" for n in range(23)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(TEXTS, TokenizerOptions(vocab_size=320))
    tokenizer.model_max_length = 96
    return tokenizer


def save(head: str, folder: Path) -> Path:
    """Save a model whose attention is in buckets at most of the texts' lengths."""
    tokenizer = make_tokenizer()
    options = ModelOptions(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, moe_intermediate_size=24, dense_up_to=16,
        bucket_size=4, near_buckets=2, beam=2, query_chunk=8, local_window=2, max_position_embeddings=96,
    )  # fmt: skip
    model = build_model(
        options, head=head, vocab_size=len(tokenizer), tokenizer_ids=Vocabulary.of(tokenizer).model_ids(), seed=0
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
