"""A tiny model of each kind with its tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the cat dog sat on a mat and then ran away from big".split())  # noqa: SIM905
SENTENCE = "the cat sat on a mat and then the big dog ran away from the cat"
LONG = f"{SENTENCE} " * 4


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=160,
    )  # fmt: skip


def model(*, head: str = "masked_lm", **settings: object) -> Any:
    options = ModelOptions(
        **{
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "moe_intermediate_size": 16, "bucket_size": 4, "near_buckets": 2, "beam": 2, "local_window": 1,
            "query_chunk": 8, "dense_up_to": 16, "max_position_embeddings": 160, **settings,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    built = build_model(options, head=head, vocab_size=len(WORDS), tokenizer_ids={"pad_token_id": 0}, seed=0)
    return built.eval()


def save(folder: Path, **settings: object) -> Path:
    model(**settings).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
