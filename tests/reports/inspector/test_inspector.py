"""The inspector's answers beside direct computation, and what it says to questions it cannot answer."""

import pytest
import torch

from sortyard.errors import InputError
from sortyard.evaluation.buckets import bucket_maps, capture_bucket_inputs
from sortyard.ops.bucket_attention import bucket_weights
from sortyard.reports.inspector.inspector import Inspector
from tests.reports.inspector.tiny import LONG, SENTENCE, model, tokenizer


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector(model(), tokenizer=tokenizer(), name="tiny")


def test_look_names_tokens_experts_and_an_answer(inspector: Inspector) -> None:
    (side,) = inspector.look(SENTENCE)["sides"]
    assert side["tokens"] == ["[CLS]", *SENTENCE.split(), "[SEP]"]
    assert side["sentence"] == [1, 17]
    assert "The last word, cat, hidden" in side["prediction"]["title"]
    assert len(side["prediction"]["rows"]) == 5
    for layer in side["experts"]:
        assert torch.tensor(layer["experts"]).shape == (18, 2)
        weights, gates = torch.tensor(layer["weights"]), torch.tensor(layer["gates"])
        torch.testing.assert_close(weights.sum(-1), torch.ones(18), atol=2e-3, rtol=0)
        assert (weights[:, 0] >= weights[:, 1]).all()
        assert ((gates > 0) & (gates < 1)).all()


def test_experts_are_those_of_the_model(inspector: Inspector) -> None:
    (side,) = inspector.look(SENTENCE)["sides"]
    ids = torch.tensor([tokenizer()(SENTENCE)["input_ids"]])
    with torch.no_grad():
        scores = inspector.model(input_ids=ids, output_router_logits=True).router_logits
    for layer, expected in zip(side["experts"], scores, strict=True):
        gates = expected.gather(-1, torch.tensor(layer["experts"]))
        torch.testing.assert_close(torch.tensor(layer["gates"]), gates, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("settings", [{}, {"selection": "rounds"}], ids=["tree", "rounds"])
def test_rows_account_for_every_key(settings: dict[str, object]) -> None:
    looked = Inspector(model(**settings), tokenizer=tokenizer(), name="tiny")
    ids = torch.tensor([tokenizer()(LONG.strip())["input_ids"]])
    inputs = capture_bucket_inputs(looked.model, batch={"input_ids": ids})[1]
    maps = bucket_maps(inputs)
    spec = inputs.core.spec_on(inputs.q.device)
    expected = bucket_weights(inputs.q, inputs.k, spec, segments=inputs.segments)[0]
    for head, query in ((0, 0), (1, 33), (1, 65)):
        row = looked.row(LONG, layer=1, head=head, query=query)
        kind = torch.tensor([int(sign) for sign in row["kind"]])
        assert (kind == 1).equal(maps.exact[head, query])
        assert sum(len(one["keys"]) for one in row["summaries"]) == row["num_summarised"] == int((kind == 2).sum())
        assert sum(len(one["keys"]) for one in row["summaries"]) == int(maps.relation.counts[0, head, query].sum())
        left_out = int((kind == 0).sum())
        assert row["num_exact"] + row["num_summarised"] + left_out == 66
        assert left_out == 0 or "selection" in settings
        assert sum(row["mass"]) == pytest.approx(1, abs=2e-3)
        torch.testing.assert_close(torch.tensor(row["mass"]), maps.mass[head, query], atol=1e-4, rtol=6e-3)
        torch.testing.assert_close(torch.tensor(row["weight"]), expected[head, query], atol=1e-4, rtol=6e-3)


def test_map_agrees_with_the_relation(inspector: Inspector) -> None:
    found = inspector.map(LONG, layer=0, head=1)
    inputs = capture_bucket_inputs(
        inspector.model, batch={"input_ids": torch.tensor([tokenizer()(LONG.strip())["input_ids"]])}
    )[0]
    maps = bucket_maps(inputs)
    assert found["size"] == found["cells"] == 66
    assert (torch.tensor(found["kind"]) == 1).equal(maps.exact[1])
    assert found["exact"] + found["summarised"] == pytest.approx(1)
    assert found["sparsity"] == pytest.approx(maps.quality.sparsity)
    buckets = torch.tensor(found["buckets"])
    assert buckets.bincount().max() <= inputs.core.spec_on(inputs.q.device).bucket_size
    near = maps.exact[1, 40]
    far_apart = (torch.arange(66) - 40).abs() > inputs.core.spec_on(inputs.q.device).local_window
    far_apart[0] = False  # the first token is read by all
    read = {int(number) for number in buckets[near & far_apart]}
    assert all(near[buckets == number].all() for number in read)  # a bucket is read whole


def test_long_picture_is_averaged(inspector: Inspector) -> None:
    text = " ".join([SENTENCE] * 9)
    found = inspector.map(text, layer=0, head=0)
    assert found["size"] == 146
    assert len(found["shade"]) == found["cells"] == 128
    assert max(map(max, found["shade"])) <= 255


def test_another_context_changes_choices(inspector: Inspector) -> None:
    looked = inspector.look(SENTENCE, before="the dog", other="a big big big mat")
    first, other = looked["sides"]
    assert (first["sentence"], other["sentence"]) == ([3, 19], [6, 22])
    assert looked["pairs"] == [(3 + i, 6 + i) for i in range(16)]
    for count, mine, yours in zip(looked["changed"], first["experts"], other["experts"], strict=True):
        differ = sum(set(mine["experts"][a]) != set(yours["experts"][b]) for a, b in looked["pairs"])
        assert (count["changed"], count["of"]) == (differ, 16)


def test_the_same_context_changes_nothing(inspector: Inspector) -> None:
    looked = inspector.look(SENTENCE, before="the dog", other="the dog")
    assert [count["changed"] for count in looked["changed"]] == [0, 0]


def test_short_text_is_dense(inspector: Inspector) -> None:
    found = inspector.map("the cat sat", layer=0, head=0)
    assert (found["exact"], found["sparsity"], found["buckets"]) == (1, 0, None)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda one: one.look("  \n"), "text: is empty; type a sentence"),
        (lambda one: one.look("cat " * 159), "text: has 161 tokens with what stands before it; at most 160"),
        (lambda one: one.look("cat " * 80, before="dog " * 80), "text: has 162 tokens"),
        (lambda one: one.map(SENTENCE, layer=2, head=0), "layer: 2 is no layer with buckets; those are, from 0: 0, 1"),
        (lambda one: one.map(SENTENCE, layer=0, head=2), "head: 2 is not there; there are 2 heads"),
        (lambda one: one.map(SENTENCE, layer=0, head=-1), "head: -1 is not there"),
        (lambda one: one.row(SENTENCE, layer=0, head=0, query=18), "query: 18 is not there; there are 18 tokens"),
    ],
    ids=["empty", "too long", "too long together", "layer", "head", "negative head", "query"],
)
def test_bad_questions(inspector: Inspector, ask: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ask(inspector)  # type: ignore[operator]


def test_dense_models_say_what_can_be_shown() -> None:
    looked = Inspector(model(attention="dense", num_experts=1), tokenizer=tokenizer(), name="dense")
    about = looked.about()
    assert about["layers"] == ["dense", "dense"]
    assert ["no bucket layers" in about["notes"][0], "no experts" in about["notes"][1]] == [True, True]
    assert looked.look(SENTENCE)["sides"][0]["experts"] == []
    with pytest.raises(InputError, match="from 0: none"):
        looked.map(SENTENCE, layer=0, head=0)


def test_another_librarys_model_shows_its_answer() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=18, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    looked = Inspector(BertForSequenceClassification(config), tokenizer=tokenizer(), name="bert")
    assert "is no sortyard model" in looked.about()["notes"][0]
    answer = looked.look(SENTENCE)["sides"][0]["prediction"]
    assert sum(row["share"] for row in answer["rows"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("head", "text", "words"),
    [
        ("masked_lm", "the [MASK] sat", "What belongs at the first [MASK]"),
        ("masked_lm", "...", "Write [MASK] where"),
        ("sequence_classification", "the cat", "The class"),
        ("causal_lm", "the cat", "The next token"),
    ],
)
def test_answers_by_head(head: str, text: str, words: str) -> None:
    causal = {"context": "running_mean"} if head == "causal_lm" else {}
    looked = Inspector(model(head=head, **causal), tokenizer=tokenizer(), name="tiny")
    assert looked.look(text)["sides"][0]["prediction"]["title"].startswith(words)
