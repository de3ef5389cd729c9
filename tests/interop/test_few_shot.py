"""Few-shot classification as in the guide: pairs bring texts of a class together, a logistic regression reads them."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sklearn.linear_model import LogisticRegression
from transformers import set_seed

from tests.interop.saved import save

pytestmark = pytest.mark.filterwarnings("default")  # what other libraries warn of is theirs

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "huggingface.md"
SIGNS, FILLING = (("saw", "log"), ("boards", "number")), ("the", "a", "cuts", "into", "and", "then")
NUM_TEXTS, NUM_HELD_OUT = 8, 40


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("masked_lm", tmp_path_factory.mktemp("models") / "encoder")


def make_texts(count: int, *, seed: int) -> tuple[list[str], list[int]]:
    """Texts whose class shows in two words of many, drawn from two that have nothing in common."""
    generator = random.Random(seed)
    texts, labels = [], [n % 2 for n in range(2 * count)]
    for label in labels:
        words = [generator.choice(FILLING) for _ in range(generator.randint(6, 20))]
        for place in generator.sample(range(len(words)), 2):
            words[place] = generator.choice(SIGNS[label])
        texts.append(" ".join(words))
    return texts, labels


def separation(vectors: NDArray[np.float32], labels: list[int]) -> float:
    """How much higher the mean cosine is within a class than between the classes."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines, same = units @ units.T, np.equal.outer(labels, labels)
    others = ~np.eye(len(labels), dtype=bool)
    return float(cosines[same & others].mean() - cosines[~same].mean())


def guide_function() -> Callable[..., tuple[SentenceTransformer, LogisticRegression]]:
    """The guide's own code, up to where it is called on a run."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = (block for block in blocks if "def few_shot" in block)
    names: dict[str, Any] = {}
    exec(block.split("\n\n\nmodel, head")[0], names)
    found: Callable[..., tuple[SentenceTransformer, LogisticRegression]] = names["few_shot"]
    return found


def plain(folder: Path) -> SentenceTransformer:
    words = Transformer(str(folder))
    return SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension(), "mean")], device="cpu")


def test_the_guides_few_shot_classifier_learns(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    set_seed(0)
    texts, labels = make_texts(NUM_TEXTS, seed=0)
    unseen, answers = make_texts(NUM_HELD_OUT, seed=1)
    before = plain(encoder)
    head = LogisticRegression(max_iter=1000).fit(before.encode(texts), labels)
    model, tuned = guide_function()(str(encoder), texts, labels, learning_rate=5e-3, epochs=4)
    assert separation(before.encode(unseen), answers) < 0.2
    assert separation(model.encode(unseen), answers) > 0.5
    assert tuned.score(model.encode(unseen), answers) > max(0.95, head.score(before.encode(unseen), answers))
    assert tuned.score(model.encode(texts), labels) == 1.0


def test_setfit_trains_scores_and_saves(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setfit = pytest.importorskip(
        "setfit", reason="setfit is not installed; it is in no extra, for what it brings along"
    )
    monkeypatch.chdir(tmp_path)
    texts, labels = make_texts(NUM_TEXTS, seed=0)
    unseen, answers = make_texts(NUM_HELD_OUT, seed=1)
    body = plain(encoder)
    before = separation(body.encode(unseen), answers)
    model = setfit.SetFitModel(model_body=body, model_head=LogisticRegression(max_iter=1000))
    settings = setfit.TrainingArguments(
        "out", batch_size=16, max_steps=36, body_learning_rate=5e-3, save_strategy="no", report_to="none", seed=0
    )
    trainer = setfit.Trainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict({"text": texts, "label": labels}),
        eval_dataset=Dataset.from_dict({"text": unseen, "label": answers}),
        metric=lambda predicted, wanted: {"right": float(np.mean(np.asarray(predicted) == np.asarray(wanted)))},
    )
    trainer.train()
    assert separation(model.model_body.encode(unseen), answers) > before + 0.4
    assert trainer.evaluate()["right"] > 0.95
    model.save_pretrained("few")
    again = setfit.SetFitModel.from_pretrained("few", device="cpu")
    assert np.allclose(again.predict_proba(unseen), model.predict_proba(unseen), atol=1e-5)
