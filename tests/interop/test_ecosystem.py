"""A saved model in the tools that people have: Trainer, PEFT, sentence-transformers, remote code, shards."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from sortyard import SortyardConfig, SortyardForMaskedLM
from tests.interop.saved import TEXTS, save

pytestmark = pytest.mark.filterwarnings("default")  # what other libraries warn of is theirs

# Its name in new versions of transformers and in old ones.
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sequence_classification", tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("masked_lm", tmp_path_factory.mktemp("models") / "encoder")


def batch_of(folder: Path, count: int = 6) -> dict[str, Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(TEXTS[:count], padding=True, truncation=True, return_tensors="pt"))


def logits_of(model: Any, folder: Path) -> Tensor:
    """Logits of the real tokens, or of every text."""
    batch = batch_of(folder)
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return logits[batch["attention_mask"].bool()] if logits.ndim == 3 else logits


def make_trainer(folder: Path, out: Path, *, steps: int) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    openings = ("log log log ", "boards boards boards ")
    texts = [openings[n % 2] + text for n, text in enumerate(TEXTS)]
    rows = [dict(tokenizer(text, truncation=True), labels=n % 2) for n, text in enumerate(texts)]
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=1e-2, save_steps=20, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        **{CHECKPOINTING: True},
    )  # fmt: skip
    return Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )


def test_trainer_learns_evaluates_saves_and_resumes(classifier, tmp_path):
    trainer = make_trainer(classifier, tmp_path, steps=40)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.8 * before
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (len(TEXTS), 2)
    resumed = make_trainer(classifier, tmp_path, steps=40)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert resumed.evaluate()["eval_loss"] == pytest.approx(after, rel=1e-4)


def test_lora_on_attention_and_experts_trains_saves_and_merges(classifier, tmp_path):
    settings = LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"],
        target_parameters=["ffn.gate_up_proj", "ffn.down_proj"],
    )  # fmt: skip
    base = AutoModelForSequenceClassification.from_pretrained(classifier)
    untouched = logits_of(base, classifier)
    model = get_peft_model(base, settings)
    torch.testing.assert_close(logits_of(model, classifier), untouched)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch_of(classifier), labels=torch.tensor([0, 1, 0, 0, 1, 1])).loss.backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if p.requires_grad and "lora_A" in name and p.grad.any()}
    assert sum(".ffn." in name for name in moved) == 4
    assert sum(".attention." in name for name in moved) == 4
    adapted = logits_of(model, classifier)
    assert (adapted - untouched).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(classifier), tmp_path)
    torch.testing.assert_close(logits_of(again, classifier), adapted)
    torch.testing.assert_close(logits_of(model.merge_and_unload(), classifier), adapted, atol=1e-5, rtol=1e-5)


def test_attention_implementations_agree_and_others_are_refused(encoder):
    model = AutoModelForMaskedLM.from_pretrained(encoder)
    fast = logits_of(model, encoder)
    model.set_attn_implementation("eager")
    eager = logits_of(model, encoder)
    torch.testing.assert_close(eager, fast, atol=1e-5, rtol=1e-5)
    assert not torch.equal(eager, fast)  # another path indeed
    torch.testing.assert_close(
        logits_of(AutoModelForMaskedLM.from_pretrained(encoder, attn_implementation="eager"), encoder), eager
    )
    with pytest.raises(ValueError, match="Choose 'sdpa'"):
        model.set_attn_implementation("flash_attention_2")


def test_shards_hold_the_same_model(encoder, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(encoder)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert torch.equal(logits_of(AutoModelForMaskedLM.from_pretrained(tmp_path), encoder), logits_of(model, encoder))


def test_push_to_hub_of_transformers_uploads_the_model(encoder, tmp_path, monkeypatch):
    def commit(self, *, repo_id, operations, **_):
        for operation in operations:
            shutil.copy(operation.path_or_fileobj, tmp_path / operation.path_in_repo)

    def no_card(*_, **__):
        raise EntryNotFoundError("none there yet")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(HfApi, "create_commit", commit)
    monkeypatch.setattr(ModelCard, "load", no_card)
    model = AutoModelForMaskedLM.from_pretrained(encoder)
    model.push_to_hub("me/sparse")
    AutoTokenizer.from_pretrained(encoder).push_to_hub("me/sparse")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in tmp_path.iterdir()}
    assert torch.equal(logits_of(AutoModelForMaskedLM.from_pretrained(tmp_path), tmp_path), logits_of(model, encoder))


def test_a_folder_with_code_needs_no_import_and_says_what_to_install(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(SortyardConfig, "_auto_class", None)
    monkeypatch.setattr(SortyardForMaskedLM, "_auto_class", None)
    SortyardConfig.register_for_auto_class()
    SortyardForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
    folder = tmp_path / "with-code"
    SortyardForMaskedLM.from_pretrained(encoder).save_pretrained(folder)
    code = f"""
import torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained({str(folder)!r}, trust_remote_code=True).eval()
print(model(torch.arange(5, 45)[None]).logits.double().sum().item())
"""
    cache = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    found = run(code, **cache)
    assert found.returncode == 0, found.stderr
    with torch.no_grad():
        wanted = SortyardForMaskedLM.from_pretrained(folder).eval()(torch.arange(5, 45)[None]).logits.double().sum()
    assert float(found.stdout.split()[-1]) == pytest.approx(wanted.item(), abs=1e-4)
    hidden = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "sortyard":
            raise ImportError("No module named 'sortyard'")
sys.meta_path.insert(0, Hide())
"""
    without = run(hidden + code, HF_MODULES_CACHE=str(tmp_path / "other"))
    assert without.returncode != 0
    assert "pip install sortyard" in without.stderr


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )


def test_sentence_transformers_pools_compares_and_saves(encoder, tmp_path):
    """Mean pooling, a text alone as in a batch, similarity, and few-shot classification on the vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = Transformer(str(encoder))
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension(), "mean")], device="cpu")
    vectors = model.encode(TEXTS, batch_size=4)
    assert vectors.shape == (len(TEXTS), 32)
    assert model.encode(TEXTS[5]) == pytest.approx(vectors[5], abs=1e-5)
    similar = model.similarity(vectors, vectors)
    assert similar.diagonal() == pytest.approx(1.0, abs=1e-5)
    assert similar[0, 9] > similar[0, 8]  # texts 0 and 9 are of one length, 8 is nine times as long
    long = [n % 9 > 4 for n in range(len(TEXTS))]
    few = LogisticRegression(max_iter=2000, C=100).fit(vectors[:10], long[:10])
    assert few.score(vectors[10:], long[10:]) > 0.8
    model.save(str(tmp_path))
    assert SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS) == pytest.approx(vectors, abs=1e-6)
