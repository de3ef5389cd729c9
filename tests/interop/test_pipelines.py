"""What users of transformers do with a saved model, in batches."""

from pathlib import Path

import pytest
import torch
from transformers import pipeline

from sortyard import Predictor
from sortyard.data.vocabulary import Vocabulary
from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.train import train_tokenizer

TEXTS = [" ".join(["the saw cuts a log into boards"] * (1 + n % 9)) + f" and then number {n}" for n in range(23)]


def save(head: str, folder: Path) -> Path:
    tokenizer = train_tokenizer(TEXTS, TokenizerOptions(vocab_size=320))
    tokenizer.model_max_length = 96
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


def test_predictor_and_pipeline_give_the_same_logits(tmp_path: Path) -> None:
    folder = save("sequence_classification", tmp_path)
    classify = pipeline("text-classification", model=str(folder), top_k=None, function_to_apply="none")
    theirs = classify(TEXTS, batch_size=4, truncation=True)
    ours = list(Predictor.from_pretrained(folder).predict(TEXTS, batch_size=5))
    assert len(ours) == len(TEXTS)
    for mine, other in zip(ours, theirs, strict=True):
        by_label = {row["label"]: row["score"] for row in other}
        assert mine.logits == pytest.approx([by_label["LABEL_0"], by_label["LABEL_1"]], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_masks_are_filled_and_features_extracted(tmp_path: Path, batch_size: int) -> None:
    folder = save("masked_lm", tmp_path)
    filled = pipeline("fill-mask", model=str(folder))([f"[MASK] {text}" for text in TEXTS[:4]], batch_size=batch_size)
    assert [len(answers) for answers in filled] == [5] * 4
    features = pipeline("feature-extraction", model=str(folder))(TEXTS[:4], batch_size=batch_size)
    assert all(torch.tensor(rows).shape[-1] == 32 for rows in features)
