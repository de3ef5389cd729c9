"""`adapt` before its first step: what it looks at, what it plans, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sortyard.data.packing import PackedRow
from sortyard.interop import upcycle
from sortyard.jobs.adapting_start import load_start, switch_off_dropout
from sortyard.jobs.sparse_share import sparse_share
from sortyard.jobs.step_time import fitting_steps
from sortyard.model.modeling import SortyardModel
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.ops import expected_sparsity
from sortyard.training.options import LoopOptions
from tests.cli.adapting import FEW
from tests.interop.dense_families import random_model


def test_the_sparse_share_is_that_of_counting_pairs(sparse: Callable, sortyard: Callable) -> None:
    model = load_start(str(sparse()), seed=0).model
    share = sparse_share(Rows([[0, 5, 48], [0, 8, 17, 30]]), model=model)
    assert share is not None
    left_out = {n: expected_sparsity(model.config.options().to_spec(), n, False) for n in (5, 43, 8, 9, 13)}
    assert share.tokens == pytest.approx((43 + 9 + 13) / 78)
    assert share.sparsity == pytest.approx(sum(n * n * s for n, s in left_out.items()) / sum(n * n for n in left_out))
    assert left_out[43] > 0.3 > left_out[8] == 0
    sparse("even", "--attention", "dense")
    assert sparse_share(Rows([[0, 48]]), model=load_start("even", seed=0).model) is None
    assert sortyard("adapt", "even", *FEW, "--json").json["sparsity"] is None


class Rows:
    """Stands for packed rows, of which only the boundaries are read."""

    def __init__(self, boundaries: list[list[int]]) -> None:
        self.boundaries = boundaries

    def __len__(self) -> int:
        return len(self.boundaries)

    def row(self, index: int) -> PackedRow:
        boundaries = np.array(self.boundaries[index])
        return PackedRow(np.zeros(boundaries[-1], dtype=np.int64), boundaries)


def test_the_steps_that_fit_leave_the_model_as_it_is(sparse: Callable) -> None:
    model = load_start(str(sparse()), seed=0).model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loop = LoopOptions(steps=10**6, max_seconds=1.0, micro_batch_size=2, accumulation_steps=2)
    state = torch.random.get_rng_state()
    steps = [
        fitting_steps(model, objective=MaskedLMObjective(), loop=loop.model_copy(update={"max_seconds": s}), length=48)
        for s in (2.0, 200.0)
    ]
    assert 1 <= steps[0] < steps[1]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_dropout_is_off_unless_kept() -> None:
    dense = random_model("bert", "masked_lm")
    dense.config.hidden_dropout_prob = dense.config.attention_probs_dropout_prob = 0.5
    model = upcycle(dense).train()
    ids = torch.arange(5, 25)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    switch_off_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert model.config.hidden_dropout_prob == 0.5


def test_a_dry_run_starts_nothing(sparse: Callable, sortyard: Callable, tmp_path: Path) -> None:
    sparse()
    before = sorted(tmp_path.rglob("*"))
    ended = sortyard("adapt", "sparse", "--data", "text.txt", "--dry-run", "--json")
    assert ended.status == 0, ended.err
    (plan,) = ended.json["plan"]
    assert (plan["phase"], plan["sequence_length"], plan["max_seconds"]) == ("adapt", 48, 300)
    assert plan["memory_bytes"] > 20 * plan["parameters"]  # the teacher's weights besides weights, gradients, moments
    assert ended.json["recipe"]["adapt"]["objective"] == "distil"
    text = sortyard("adapt", "sparse", "--data", "text.txt", "--dry-run").out
    assert "as many as fit into 5 minutes" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_says_how_much_of_the_text_meets_sparse_attention(sparse: Callable, sortyard: Callable) -> None:
    sparse()
    few = [word for word in FEW if word != "-q"]
    assert "% of the tokens stand in texts longer than 8 tokens" in sortyard("adapt", "sparse", *few).err
    sparse("patient", "dense_up_to=48")
    told = sortyard("adapt", "patient", *few).err
    assert "0% of the tokens stand in texts longer than 48 tokens, where attention is sparse: it learns nothing" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sparse"], "--data: say which text"),
        (["nowhere/at/all", *FEW], "no such folder"),
        (["dense", *FEW], "sortyard upcycle"),
        (["classifier", "--objective", "masked_lm", *FEW], "--head masked_lm"),
        (["sparse", "--objective", "distill", *FEW], "did you mean distil?"),
        (["sparse", "--sequence-length", "64", *FEW], "more than the 48 positions"),
        (["sparse", "--teacher", "./gone", *FEW], "no such folder"),
        (["sparse", "--teacher", "./dense", *FEW], "only sortyard models"),
        (["sparse", "--teacher", "wide", *FEW], "hidden_size is 16"),
        (["sparse", "--teacher", "strange", *FEW], "another vocabulary"),
        (["sparse", "--data", "none.txt"], "no such file"),
        (["sparse", "--data", "text.txt", "--minutes", "0"], "--minutes 0: must be more than 0"),
        (["sparse", "--data", "text.txt", "--minutes", "inf"], "--minutes inf: must be more than 0 and a number"),
        (["sparse", "--data", "text.txt", "--steps", "0"], "--steps 0: must be at least 1"),
        (["sparse", "small", "--data", "text.txt"], "adapt.loop: must be given"),
        (["sparse", *FEW, "adapt.data.validation_fraction=0"], "held-out rows"),
        (["sparse", *FEW, "--out", "dense"], "exists and is not empty"),
        (["headless", *FEW], "tensors of the encoder are missing"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_unusable_input_writes_nothing(
    words: list[str], message: str, sparse: Callable, sortyard: Callable, tmp_path: Path
) -> None:
    folder = sparse()
    if "classifier" in words:
        sparse("classifier", "--head", "sequence_classification")
    if "wide" in words:
        model = load_start(str(folder), seed=0).model
        config = type(model.config).from_dict(model.config.to_dict() | {"hidden_size": 16, "num_attention_heads": 2})
        SortyardModel(config).save_pretrained(tmp_path / "wide")
        load_start(str(folder), seed=0).tokenizer.save_pretrained(tmp_path / "wide")
    if "strange" in words:
        start = load_start(str(folder), seed=0)
        start.model.save_pretrained(tmp_path / "strange")
        changed = json.dumps(json.loads(start.tokenizer.backend_tokenizer.to_str())).replace('"w7"', '"x7"')
        start.tokenizer.save_pretrained(tmp_path / "strange")
        (tmp_path / "strange" / "tokenizer.json").write_text(changed)
    if "headless" in words:
        lose_a_layer(folder, tmp_path / "headless")
    before = sorted(tmp_path.rglob("*"))
    ended = sortyard("adapt", *words, "--json")
    assert ended.status == 2, ended.err
    assert message in ended.json["error"]
    assert "Traceback" not in ended.err
    assert sorted(tmp_path.rglob("*")) == before


def lose_a_layer(folder: Path, copy: Path) -> None:
    start = load_start(str(folder), seed=0)
    kept = {name: tensor for name, tensor in start.model.state_dict().items() if "layers.1." not in name}
    start.model.save_pretrained(copy, state_dict=kept)
    start.tokenizer.save_pretrained(copy)
