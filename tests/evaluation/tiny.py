"""A tiny BERT classifier, its tokenizer and labelled examples, with no file and no network."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from sortyard.data.examples import Examples
from sortyard.data.glue import TASKS
from sortyard.data.skips import SkipLog

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(60)))
POSITIONS = 32


def make_tokenizer(*, positions: int = POSITIONS) -> PreTrainedTokenizerFast:
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    model.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=positions,
    )  # fmt: skip


def make_bert(*, num_labels: int = 3, positions: int = POSITIONS) -> BertForSequenceClassification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=positions, num_labels=num_labels, initializer_range=0.5,
        )  # fmt: skip
        return BertForSequenceClassification(config).eval()


def make_texts(number: int) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 45, (number,), generator=generator).tolist()
    return [" ".join(f"w{i}" for i in torch.randint(0, 60, (n,), generator=generator).tolist()) for n in lengths]


def make_examples(name: str, *, texts: list[str], labels: list[float], pairs: list[str] | None = None) -> Examples:
    kind = np.float32 if TASKS[name].type == "regression" else np.int64
    places = [f"file:{i}" for i in range(len(texts))]
    return Examples(TASKS[name], texts, pairs, np.asarray(labels, dtype=kind), places, SkipLog())
