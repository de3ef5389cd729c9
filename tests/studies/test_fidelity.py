"""Fidelity of selections, on a tiny random BERT, a tiny sortyard model and a made-up text."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from sortyard import SortyardConfig, SortyardForMaskedLM, SortyardModel
from sortyard.cli.main import main
from sortyard.errors import InputError
from sortyard.ops import BucketSpec
from sortyard.studies.bench.fidelity import FidelityPlan, run_fidelity
from sortyard.studies.bench.fidelity_encoder import load_encoder
from sortyard.studies.bench.fidelity_position_tree import position_relation
from sortyard.studies.bench.fidelity_selections import (
    FAMILIES,
    ByOracle,
    BySpec,
    make_selection,
    points_of,
)
from sortyard.studies.bench.fidelity_text import take_passages
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.train import train_tokenizer

LENGTH = 64
NOWHERE = torch.zeros(50, dtype=torch.bool)


def made_up(words: int, *, seed: int) -> str:
    drawn = random.Random(seed)
    return " ".join("".join(drawn.choices("abcdefgh", k=drawn.randint(2, 5))) for _ in range(words))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    options = TokenizerOptions(algorithm="wordpiece", vocab_size=300, min_frequency=1)
    return train_tokenizer([made_up(2000, seed=9)], options)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "novels.jsonl"
    path.write_text("".join(json.dumps({"text": made_up(600, seed=seed)}) + "\n" for seed in range(4)))
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sortyard_run(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    run = tmp_path_factory.mktemp("run")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = SortyardConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, attention="dense", **shape)
    SortyardForMaskedLM(config).save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    return run


@pytest.fixture
def plan(bert: Path, text: Path) -> Callable[..., FidelityPlan]:
    def make(**changes: Any) -> FidelityPlan:
        fields: dict[str, Any] = {
            "model": str(bert), "model_name": "tiny", "text": str(text), "text_name": text.name,
            "lengths": (LENGTH,), "passages": 2, "families": ("oracle",), "quick": True, "seed": 0, "threads": 1,
        }  # fmt: skip
        return FidelityPlan(**fields | changes)

    return make


def random_qkv(length: int = 50) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 2, length, 8, generator=generator) for _ in range(3))


@pytest.mark.parametrize("near_buckets", [2, 100], ids=["some-near", "all-near"])
def test_the_position_tree_accounts_for_every_key_once(near_buckets: int) -> None:
    q, k, _ = random_qkv()
    spec = BucketSpec(bucket_size=4, query_chunk=8, near_buckets=near_buckets, beam=near_buckets, local_window=2)
    relation = position_relation(q, k, spec, marked=NOWHERE)
    assert (relation.near.sum(-1) + relation.counts.sum(-1) == 50).all()
    assert bool(relation.near.all()) == (near_buckets == 100)


def test_the_position_trees_near_leaves_are_blocks_of_positions() -> None:
    q, k, _ = random_qkv(64)
    spec = BucketSpec(bucket_size=8, query_chunk=16, near_buckets=1, beam=1, local_window=0)
    near = position_relation(q, k, spec, marked=torch.zeros(64, dtype=torch.bool)).near[0, 0, 5]
    (block,) = {int(key) // 8 for key in near.nonzero() if key != 5}
    assert near[block * 8 : block * 8 + 8].all()


def test_the_oracle_of_all_keys_is_dense_attention() -> None:
    q, k, v = random_qkv()
    dense = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ByOracle(50).attend(q, k, v), dense)
    near, keys = ByOracle(7).pairs(q, k)
    assert keys == 7
    chosen = (q @ k.transpose(-1, -2)).masked_fill(~near, torch.inf).amin(-1)
    assert (chosen >= (q @ k.transpose(-1, -2)).masked_fill(near, -torch.inf).amax(-1)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_selection_says_which_pairs_it_attends_to(family: str) -> None:
    q, k, v = random_qkv()
    selection = make_selection(family, points_of(family)[0], length=50, keys=20.0, seed=0)
    near, keys = selection.pairs(q, k)
    assert near.float().sum(-1).mean() <= keys + 1e-3
    if family in ("oracle", "random", "local"):
        assert keys == pytest.approx(20, abs=1.5)
    if not family.startswith(("tree", "position")):  # no summaries: masked attention is the whole truth
        logits = (q @ k.transpose(-1, -2) * 8**-0.5).masked_fill(~near, -torch.inf)
        torch.testing.assert_close(selection.attend(q, k, v), logits.softmax(-1) @ v)


def test_the_first_and_the_last_token_are_exact_for_every_query() -> None:
    q, k, _ = random_qkv()
    near, _ = BySpec(BucketSpec(dense_up_to=0, bucket_size=4, near_buckets=1, beam=1, local_window=0)).pairs(q, k)
    assert near[..., [0, -1]].all()
    assert not near.all()


@pytest.mark.parametrize("kind", ["bert", "sortyard_run"])
def test_swapping_dense_attention_for_itself_changes_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    folder = folder if kind == "bert" else folder / "model"
    ids = torch.randint(5, 100, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    encoder = load_encoder(str(folder), name=kind)
    model = (BertModel if kind == "bert" else SortyardModel).from_pretrained(folder).eval()
    with torch.no_grad():
        own = model(ids).last_hidden_state[0]
    torch.testing.assert_close(encoder.states(ids, F.scaled_dot_product_attention), own)
    assert not torch.allclose(encoder.states(ids, lambda q, k, v: v), own, atol=1e-3)


def test_a_bert_takes_more_tokens_than_it_has_positions(bert: Path) -> None:
    encoder = load_encoder(str(bert), name="tiny")
    ids = torch.full((1, 3 * LENGTH), 7)
    states = encoder.states(ids, F.scaled_dot_product_attention)
    assert states.shape == (3 * LENGTH, 32)
    # the ends of the stretched table are the table's own: equal tokens, and attention to equal tokens everywhere
    short = encoder.states(ids[:, :LENGTH], lambda q, k, v: v)
    long = encoder.states(ids, lambda q, k, v: v)
    torch.testing.assert_close(long[[0, -1]], short[[0, -1]])


def test_passages_are_of_several_documents_where_these_are_long_enough(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [made_up(600, seed=seed) for seed in range(5)]
    take = {"tokenizer": tokenizer, "length": LENGTH, "count": 3, "source": "x"}
    passages = take_passages(documents, seed=1, **take)
    assert [passage.shape for passage in passages] == [(1, LENGTH)] * 3
    assert all((p[0, 0], p[0, -1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id) for p in passages)
    assert len({tuple(passage[0].tolist()) for passage in passages}) == 3
    again, other = take_passages(documents, seed=1, **take), take_passages(documents, seed=2, **take)
    assert all(torch.equal(a, b) for a, b in zip(passages, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(passages, other, strict=True))
    joined = take_passages([made_up(40, seed=seed) for seed in range(30)], seed=0, **take)
    assert [passage.shape for passage in joined] == [(1, LENGTH)] * 3


def test_a_text_that_is_too_short_says_what_is_needed(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"--text x: 3 passages of 64 tokens need 186 tokens, and the text has \d+"):
        take_passages(["abc abd"], tokenizer=tokenizer, length=LENGTH, count=3, seed=0, source="x")


def test_a_run_measures_resumes_and_reports(plan: Callable[..., FidelityPlan], tmp_path: Path) -> None:
    told: list[str] = []
    result, tables = run_fidelity(plan(), folder=tmp_path, fresh=False, say=told.append)
    assert result.complete
    assert list(result.cells) == [
        f"{LENGTH}/{family}/{point}" for family in ("tree", "oracle") for point in ("default", "large")
    ]
    for cell in result.cells.values():
        assert 0 < cell["keys"] <= LENGTH
        assert 0 <= cell["mass"] <= 1 + 1e-6
        assert len(cell["error_by_layer"]) == len(cell["error_by_passage"]) == 2
        assert 0.5 < cell["cosine"] <= 1 + 1e-6
    assert result.cells[f"{LENGTH}/tree/large"]["error"] < 1e-4  # eight of four leaves: dense
    assert "keys a query" in tables
    stored = json.loads((tmp_path / "fidelity.json").read_text())
    assert stored["cells"] == result.cells
    assert "Bucket attention, fidelity" in (tmp_path / "fidelity.html").read_text()
    told.clear()
    wider, _ = run_fidelity(plan(families=("oracle", "local")), folder=tmp_path, fresh=False, say=told.append)
    assert sum("measured before" in line for line in told) == 4
    assert f"{LENGTH}/local/default" in wider.cells


def test_cells_of_other_text_are_measured_anew(plan: Callable[..., FidelityPlan], tmp_path: Path) -> None:
    told: list[str] = []
    run_fidelity(plan(families=("tree",)), folder=tmp_path, fresh=False, say=told.append)
    other = tmp_path / "novels.jsonl"
    other.write_text(json.dumps({"text": made_up(900, seed=77)}) + "\n")
    run_fidelity(plan(families=("tree",), text=str(other)), folder=tmp_path, fresh=False, say=told.append)
    assert len(told) == 4
    assert not any("measured before" in line for line in told)


def test_another_checkpoint_of_the_same_name_is_refused(
    plan: Callable[..., FidelityPlan], bert: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = BertModel.from_pretrained(bert)
    headless = BertForMaskedLM(model.config)  # without a pooler, which is drawn at random wherever it is loaded
    headless.bert.load_state_dict(model.state_dict(), strict=False)
    place = tmp_path / "model"
    headless.save_pretrained(place)
    tokenizer.save_pretrained(place)
    asked = plan(model=str(place), families=("tree",))
    told: list[str] = []
    run_fidelity(asked, folder=tmp_path, fresh=False, say=lambda _: None)
    run_fidelity(asked, folder=tmp_path, fresh=False, say=told.append)
    assert sum("measured before" in line for line in told) == 2
    with torch.no_grad():
        headless.bert.encoder.layer[1].attention.self.query.weight[0, 0] += 1
    headless.save_pretrained(place)
    with pytest.raises(InputError, match="a result with other settings"):
        run_fidelity(asked, folder=tmp_path, fresh=False, say=lambda _: None)


def test_a_model_that_cannot_be_stretched_keeps_to_its_length(
    plan: Callable[..., FidelityPlan], sortyard_run: Path, tmp_path: Path
) -> None:
    own = {"model": str(sortyard_run / "model"), "model_name": "run", "families": ("tree",)}
    result, _ = run_fidelity(plan(lengths=(), **own), folder=tmp_path, fresh=True, say=lambda _: None)
    assert {cell["length"] for cell in result.cells.values()} == {LENGTH}
    with pytest.raises(InputError, match="--lengths 128: run takes at most 64 tokens"):
        run_fidelity(plan(lengths=(128,), **own), folder=tmp_path, fresh=True, say=lambda _: None)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"model_type": "gpt2"}, "is of type 'gpt2'"), ({"model_type": "bert", "is_decoder": True}, "is causal")],
    ids=["other-kind", "causal"],
)
def test_other_models_are_refused(
    changes: dict[str, Any], problem: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModel

    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(**changes, **shape)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=problem):
        load_encoder(str(tmp_path), name="x")


def test_the_verb_prints_one_json_object(
    sortyard_run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "fidelity", "--model", str(sortyard_run), "--text", str(text), "--out", str(tmp_path)]
    assert main([*words, "--selections", "local", "--passages", "1", "--quick", "--threads", "1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["name"] == "fidelity"
    assert str(tmp_path) not in record["command"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--model", "/no/such/model"], "there is no such folder"),
        (["--lengths", "16"], "at least 32 tokens"),
        (["--selections", "oracel"], "oracle"),
        (["--text", "missing.txt"], "there is no such file"),
    ],
    ids=["model", "length", "selection", "text"],
)
def test_wrong_words_are_the_users_fault(
    words: list[str], problem: str, bert: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(bert), "--text", str(text), "--out", str(tmp_path), *words]
    assert main(["bench", "fidelity", *given]) == 2
    assert problem in capsys.readouterr().err


def test_every_selection_has_a_line_of_its_own() -> None:
    from sortyard.studies.bench.fidelity_page import _LOOKS
    from sortyard.studies.bench.fidelity_selections import FAMILIES

    assert set(_LOOKS) == set(FAMILIES)
    assert len(set(_LOOKS.values())) == len(FAMILIES)
