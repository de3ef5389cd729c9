"""What users of transformers do with a saved model, in batches."""

from pathlib import Path

import pytest
import torch
from transformers import pipeline

from sortyard import Predictor
from tests.interop.saved import TEXTS, save


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
