"""Export every kind of model and compare; run by test_export in a process of its own, without the tests' shape checks.

The folder given holds a small classifier.
"""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sortyard import SortyardConfig, SortyardForMaskedLM
from sortyard.errors import InputError
from sortyard.interop import export_program
from sortyard.interop.exporting import largest_difference
from tests.interop.dense_families import random_model
from tests.interop.saved import TEXTS

KINDS: tuple[dict[str, object], ...] = (
    {},
    {"attention": "dense"},
    {"selection": "rounds"},
    {"context": "running_mean"},
    {"context": "ema"},
    {"attention_layers": ["sliding", "bucket"]},
)


def compare(folder: Path, changes: dict[str, object]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, **changes).eval()
    program = export_program(model).module()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for count in (1, 9):
        batch = tokenizer(TEXTS[:count], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(program(**batch)["logits"], model(**batch).logits, atol=1e-6, rtol=0)


def compare_dense(family: str) -> None:
    model = random_model(family, "masked_lm").eval()
    ids = torch.arange(2 * 9).reshape(2, 9) + 3
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    program = export_program(model)
    assert max(largest_difference(program.module(), model).values()) < 1e-5  # up to the longest sequence that it takes
    found = program.module()(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def compare_long_rows() -> None:
    """Dense attention treats rows of 512 positions and more otherwise where it is not traced."""
    config = SortyardConfig(
        attention="dense", vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, num_experts=1, num_expert_groups=1, num_groups_per_tok=1, num_experts_per_tok=1,
        max_position_embeddings=1024,
    )  # fmt: skip
    torch.manual_seed(0)
    model = SortyardForMaskedLM(config).eval()
    assert max(largest_difference(export_program(model).module(), model).values()) < 1e-5


def refuse_statistics(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, output_router_logits=True)
    with pytest.raises(InputError, match="cannot be exported: statistics cannot be computed"):
        export_program(model)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for changes in KINDS:
        compare(folder, changes)
    for family in ("bert", "roberta", "modernbert"):
        compare_dense(family)
    compare_long_rows()
    refuse_statistics(folder)
