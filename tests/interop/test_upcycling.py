"""An upcycled model computes what the dense one did: every family, every head, every exact way to make experts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from sortyard.interop import upcycle
from sortyard.interop.upcycling import upcycle_with_report
from sortyard.interop.upcycling.checking import largest_difference
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.factory import HEADS as OWN_HEADS
from sortyard.model.modeling import SortyardModel, SortyardPreTrainedModel
from tests.interop.dense_families import FAMILIES, HEADS, make_batch, minilm_folder, random_model

TOLERANCE = 1e-5
CASES = [
    (family, head) for family in FAMILIES for head in HEADS if head != "discriminator" or family.startswith("electra")
]


def outputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        found = model(**batch, output_hidden_states=True)
    names = ("last_hidden_state", "logits", "start_logits", "end_logits")
    return [found[name] for name in names if name in found] + list(found.hidden_states)


def assert_same_function(ours: SortyardPreTrainedModel, theirs: PreTrainedModel, *, atol: float = TOLERANCE) -> None:
    batch = make_batch(theirs.config)
    real = batch["attention_mask"].bool()
    found, expected = outputs(ours, batch), outputs(theirs, batch)
    if type(theirs).__name__ == "ElectraForPreTraining":
        found[0] = found[0][..., 1] - found[0][..., 0]
    assert len(found) == len(expected) >= 5
    for mine, truth in zip(found, expected, strict=True):
        by_token = mine.shape[:2] == real.shape
        torch.testing.assert_close(
            mine[real] if by_token else mine, truth[real] if by_token else truth, rtol=0, atol=atol
        )


@pytest.mark.parametrize(("family", "head"), CASES, ids=["-".join(case) for case in CASES])
def test_logits_and_states_are_the_originals(family, head):
    theirs = random_model(family, head)
    found = upcycle_with_report(theirs, num_experts=8, num_groups=4)
    ours = found.model
    assert type(ours) is (SortyardModel if head == "base" else OWN_HEADS[found.report.head])
    assert_same_function(ours, theirs)
    assert sum(isinstance(module, ExpertLayer) for module in ours.modules()) == 3
    assert set(found.report.new) <= {name for name, _ in ours.named_parameters() if "router" in name or "bias" in name}
    assert all(name.startswith("pooler.") for name in found.report.unused)
    assert set(found.report.mapped).isdisjoint(found.report.unused)
    assert found.report.is_exact


@pytest.mark.parametrize("family", ["bert", "modernbert", "modernbert-mean-bias"])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_experts": 1},
        {"num_experts": 12, "num_groups": 3},
        {"num_experts": 4, "num_groups": 1},
        {"experts_from": "copies", "num_experts_per_tok": 1, "num_groups": 1},
        {"experts_from": "copies", "num_experts_per_tok": 4, "num_groups": 2},
        {"experts_from": "shared"},
        {"attention": "dense"},
        {"expert_layers": [1]},
        {"context": "none"},
        {"context": "ema", "group_gate": "context"},
    ],
    ids=str,
)
def test_every_exact_way_to_make_experts_keeps_the_function(family, settings):
    theirs = random_model(family, "masked_lm")
    found = upcycle_with_report(theirs, **settings)
    assert found.report.is_exact
    assert_same_function(found.model, theirs)
    assert largest_difference(found).absolute < TOLERANCE


def test_drop_upcycling_is_no_identity_and_says_so():
    theirs = random_model("bert", "masked_lm")
    found = upcycle_with_report(theirs, experts_from="drop", drop_ratio=0.25)
    assert not found.report.is_exact
    assert found.report.exact_up_to is None
    assert "25%" in found.report.inexact_because[0]
    assert largest_difference(found).absolute > 1e-2
    old = theirs.bert.encoder.layer[0].intermediate.dense
    layer = found.model.model.encoder.layers[0].ffn
    kept = (layer.up_proj == old.weight).all(-1)
    assert kept.sum(1).tolist() == [36] * 8
    assert ((layer.up_proj_bias == old.bias) == kept).all()
    downs = (layer.down_proj == theirs.bert.encoder.layer[0].output.dense.weight).all(1)
    assert (downs == kept).all()
    assert not (kept[0] == kept[1]).all()
    assert float(layer.up_proj.detach().std()) == pytest.approx(float(old.weight.detach().std()), rel=0.1)


def test_the_same_seed_gives_the_same_model():
    theirs = random_model("distilbert", "masked_lm")
    models = [upcycle(theirs, seed=seed, experts_from="drop").state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    changed = {name for name in models[0] if not torch.equal(models[0][name], models[2][name])}
    assert any("router" in name for name in changed)
    assert any("up_proj" in name for name in changed)


def test_longer_sequences_go_through_buckets_and_short_ones_do_not():
    theirs = random_model("bert", "masked_lm")
    ours = upcycle(theirs, bucket_size=4, query_chunk=8, near_buckets=1, beam=1, local_window=1, dense_up_to=16)
    short, long = (make_batch(theirs.config, length=length) for length in (16, 48))
    with torch.no_grad():
        assert (ours(**short).logits - theirs(**short).logits)[0].abs().max() < TOLERANCE
        apart = (ours(**long).logits - theirs(**long).logits)[0].abs().max()
    assert TOLERANCE < apart < 100
    assert ours.model.encoder.layers[0].attention.q_proj.weight.equal(
        theirs.bert.encoder.layer[0].attention.self.query.weight
    )


def test_modernberts_windows_stay_and_its_wide_layers_get_buckets():
    ours = upcycle(random_model("modernbert", "base"))
    assert ours.config.attention_layers == ["bucket", "sliding", "sliding"]
    assert ours.config.sliding_window == 3


def test_a_discriminators_logit_is_the_odds_of_replaced():
    theirs = random_model("electra", "discriminator")
    ours = upcycle(theirs)
    assert ours.config.id2label == {0: "original", 1: "replaced"}
    batch = make_batch(theirs.config)
    with torch.no_grad():
        probability = ours(**batch).logits.softmax(-1)[..., 1]
        truth = theirs(**batch).logits.sigmoid()
    torch.testing.assert_close(probability[0], truth[0], rtol=0, atol=TOLERANCE)


def test_another_head_takes_nothing_from_the_one_that_is_there():
    theirs = random_model("bert", "sequence_classification")
    found = upcycle_with_report(theirs, head="token_classification").report
    assert set(found.unused) == {"classifier.weight", "classifier.bias", "pooler.dense.weight", "pooler.dense.bias"}
    assert {"classifier.weight", "classifier.bias"} <= set(found.new)


def test_labels_travel():
    theirs = random_model("roberta", "sequence_classification")
    theirs.config.id2label = {0: "bad", 1: "so so", 2: "good"}
    theirs.config.problem_type = "single_label_classification"
    config = upcycle(theirs).config
    assert (config.id2label[1], config.num_labels, config.problem_type) == ("so so", 3, "single_label_classification")


def test_attention_dropout_is_the_checkpoints_unless_it_is_set():
    theirs = random_model("bert", "base")
    theirs.config.attention_probs_dropout_prob = 0.3
    assert upcycle(theirs).config.attention_probs_dropout_prob == 0.3
    assert upcycle(theirs, attention_probs_dropout_prob=0.0).config.attention_probs_dropout_prob == 0.0


def test_a_classifier_may_read_the_mean():
    theirs = random_model("bert", "sequence_classification")
    assert upcycle(theirs).config.classifier_pooling == "cls"
    found = upcycle_with_report(theirs, classifier_pooling="mean")
    assert found.model.config.classifier_pooling == "mean"
    assert found.report.inexact_because == ("the classifier reads mean instead of cls",)


def test_a_wider_type_stays():
    theirs = random_model("bert", "masked_lm").double()
    ours = upcycle(theirs)
    assert ours.dtype == torch.float64
    assert_same_function(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("head", ["base", "sequence_classification"])
def test_real_weights(head):
    folder = minilm_folder()
    found = upcycle_with_report(folder, head=head)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["The cat sat on the mat, and nobody minded.", "Short.", "Is a hash table faster than a tree? " * 12]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    dense = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        mine = found.model.base_model(**batch).last_hidden_state
        truth = dense(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(mine[real], truth[real], rtol=0, atol=TOLERANCE)
    assert found.report.unused == (("pooler.dense.weight", "pooler.dense.bias") if head == "base" else ())
    if head != "base":
        assert found.model.head.dense.weight.equal(dense.pooler.dense.weight)


def test_real_states_reach_every_expert():
    """A gate drawn at random would read little but the states' common mean: with 64 experts it leaves some idle."""
    folder = minilm_folder()
    model = upcycle(folder, num_experts=32, num_groups=4)
    texts = [Path(__file__).read_text()[i : i + 800] for i in range(0, 4800, 400)]
    batch = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=192, return_tensors="pt"
    )
    with torch.no_grad():
        loads = model(**batch, output_statistics=True).expert_loads
    shares = loads / loads.sum(1, keepdim=True)
    utilisation = torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum(1)) / 32
    assert (loads > 0).all()
    assert utilisation.min() > 0.75


def test_narrow_embeddings_are_embeddings_like_any_other(tmp_path):
    ours = upcycle(random_model("electra", "masked_lm"))
    batch = make_batch(ours.config)
    with torch.no_grad():
        truth = ours(**batch).logits
        embeds = ours.get_input_embeddings()(batch.pop("input_ids"))
        assert embeds.shape[-1] == 16
        torch.testing.assert_close(ours(inputs_embeds=embeds, **batch).logits, truth, rtol=0, atol=0)
        ours.resize_token_embeddings(80)
    assert ours.decoder.weight is ours.get_input_embeddings().weight
    ours.save_pretrained(tmp_path)
    again = HEADS["masked_lm"].from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(inputs_embeds=embeds, **batch).logits[..., :65], truth, rtol=0, atol=1e-6)


def test_a_shared_layer_survives_saving_and_checkpointing(tmp_path):
    theirs = random_model("bert", "masked_lm")
    upcycle(theirs, experts_from="shared").save_pretrained(tmp_path)
    again = HEADS["masked_lm"].from_pretrained(tmp_path).eval()
    assert_same_function(again, theirs)
    batch = make_batch(theirs.config) | {"labels": make_batch(theirs.config)["input_ids"]}
    gradients = []
    for use in (False, True):
        again.zero_grad()
        for module in again.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        again.train()
        for block in again.model.encoder.layers:
            block.attention.dropout_prob = 0.0
        if use:
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
            next(getattr(again, name) for name in names if hasattr(again, name))()
        again(**batch).loss.backward()
        gradients.append(again.model.encoder.layers[0].shared_ffn.up_proj.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
