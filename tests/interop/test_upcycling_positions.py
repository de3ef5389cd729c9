"""Sequences longer than the checkpoint's."""

import pytest
import torch

from sortyard.interop import upcycle
from sortyard.interop.upcycling import upcycle_with_report
from tests.interop.dense_families import POSITIONS, make_batch, random_model

LEARNED = ["bert", "roberta", "electra", "distilbert"]
LONG = 2 * POSITIONS - 1


def tables(family: str, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    theirs = random_model(family, "base")
    ours = upcycle(theirs, max_position_embeddings=LONG, **settings)
    old = theirs.embeddings.position_embeddings.weight.detach()
    return old[-POSITIONS:], ours.embeddings.position_embeddings.weight.detach()


@pytest.mark.parametrize("family", LEARNED)
def test_learned_positions_are_interpolated(family):
    old, new = tables(family)
    assert len(new) == LONG
    torch.testing.assert_close(new[::2], old)  # 2 n - 1 rows: every other one falls on an old one
    torch.testing.assert_close(new[1::2], (old[1:] + old[:-1]) / 2)


@pytest.mark.parametrize("family", LEARNED)
def test_or_they_repeat(family):
    old, new = tables(family, positions="keep")
    assert new[:POSITIONS].equal(old)
    assert new[POSITIONS:].equal(old[:-1])


@pytest.mark.parametrize("positions", ["stretch", "keep"])
def test_the_rotary_base_is_raised_for_layers_that_see_everything(positions):
    theirs = random_model("modernbert", "base")
    config = upcycle(theirs, max_position_embeddings=4 * POSITIONS, positions=positions).config
    factor = 4 ** (8 / 6) if positions == "stretch" else 1
    assert config.rope_parameters["rope_theta"] == pytest.approx(160_000 * factor)
    assert config.sliding_rope_theta == 10_000
    assert config.max_position_embeddings == 4 * POSITIONS


@pytest.mark.parametrize("family", [*LEARNED, "modernbert"])
@pytest.mark.parametrize("positions", ["stretch", "keep"])
def test_a_long_sequence_runs_and_the_report_says_what_is_kept(family, positions):
    theirs = random_model(family, "masked_lm")
    found = upcycle_with_report(theirs, max_position_embeddings=128, positions=positions, dense_up_to=64)
    assert found.report.is_exact == (positions == "keep")
    batch = make_batch(theirs.config, length=128)
    with torch.no_grad():
        assert found.model(**batch).logits.isfinite().all()
        short = make_batch(theirs.config)
        real = short["attention_mask"].bool()
        apart = (found.model(**short).logits - theirs(**short).logits)[real].abs().max()
    assert (apart < 1e-5) == found.report.is_exact


@pytest.mark.parametrize("family", [*LEARNED, "modernbert"])
def test_learned_positions_are_exact_up_to_the_old_length_and_rotary_ones_up_to_the_new(family):
    settings = {"max_position_embeddings": 2 * POSITIONS, "positions": "keep", "attention": "dense"}
    report = upcycle_with_report(random_model(family, "base"), **settings).report
    assert report.exact_up_to == (2 * POSITIONS if family == "modernbert" else POSITIONS)


def test_the_same_length_changes_nothing():
    found = upcycle_with_report(random_model("bert", "base"), max_position_embeddings=POSITIONS)
    assert found.report.is_exact
