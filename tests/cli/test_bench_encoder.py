"""`bench encoder`: real runs of small encoders through the command line."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import BertConfig, ModernBertConfig

from sortyard.evaluation.batching import TOKENS_PER_BATCH
from sortyard.model.configuration import SortyardConfig
from sortyard.studies.bench import encoder_models, encoder_sides
from sortyard.studies.bench.encoder_cases import BATCHINGS, SHORT, EncoderCase, make_batches, short_lengths
from sortyard.studies.bench.encoder_models import ALL_ACTIVE, MODELS, OURS, VOCABULARY, sizes
from sortyard.studies.bench.encoder_sides import find_sides

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CASE = EncoderCase(workload=SHORT, length=128, dtype="fp32", sentences=128, positions=512, seed=0, device="cpu")
LIGHT = ("--threads", "1", "--repetitions", "2", "--sentences", "32", "--json")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of the same kinds, one layer each; compiled ones run eagerly, as shapes are checked in tests."""

    def bert(positions: int) -> BertConfig:
        return BertConfig(
            vocab_size=VOCABULARY, intermediate_size=64, max_position_embeddings=max(512, positions), **TINY
        )

    def modern(positions: int) -> ModernBertConfig:
        return ModernBertConfig(intermediate_size=48, **TINY)

    for name, model in MODELS.items():
        if model.ours:
            fields = {**model.config(0).to_dict(), **TINY, "moe_intermediate_size": 16}
            found = replace(model, config=lambda _, fields=fields: SortyardConfig.from_dict(fields))
        else:
            found = replace(model, config=modern if name.startswith("modern") else bert)
        monkeypatch.setitem(MODELS, name, found)
    monkeypatch.setattr(encoder_sides, "compile_model", lambda model: model)
    for cached in (encoder_models.load_model, encoder_models.sizes, encoder_sides._compiled):
        cached.cache_clear()
    yield
    for cached in (encoder_models.load_model, encoder_models.sizes, encoder_sides._compiled):
        cached.cache_clear()


@pytest.mark.usefixtures("tiny")
def test_every_side_is_measured_and_compared(sortyard: Callable, tmp_path: Path) -> None:
    words = ("--lengths", "sst2,64,96,128", "--dtypes", "fp32,bf16", "--memory", "none", "--out", str(tmp_path))
    ended = sortyard("bench", "encoder", *LIGHT, *words)
    assert ended.status == 0, ended.err
    found = ended.json
    assert found["complete"] is True
    kinds = ("sst2/128", "fixed/64", "fixed/96", "fixed/128")
    assert set(found["cells"]) == {f"{dtype}/{kind}" for dtype in ("fp32", "bf16") for kind in kinds}
    for cell in found["cells"].values():
        assert set(cell["sides"]) == set(find_sides(cell["workload"]))
        for record in cell["sides"].values():
            assert record["skipped"] == ""
            assert record["median_seconds"] == statistics.median(record["seconds"])
            assert record["tokens_per_second"] == pytest.approx(record["real_tokens"] / record["median_seconds"])
            assert record["real_tokens"] <= record["all_tokens"]
    short = found["cells"]["fp32/sst2/128"]["sides"]
    (against,) = (
        one for one in found["summary"]["rivals"]["fp32/sst2/128"]
        if (one["rival"], one["ours"]) == ("bert-large@dynamic", "sortyard@tokens")
    )  # fmt: skip
    rival, ours = short["bert-large@dynamic"], short["sortyard@tokens"]
    ratios = [
        base / rival["real_tokens"] / (own / ours["real_tokens"])
        for base, own in zip(rival["seconds"], ours["seconds"], strict=True)
    ]
    assert against["times_faster"]["median"] == pytest.approx(statistics.median(ratios))
    assert found["summary"]["growth"]["bf16/fixed"]["sortyard"]["longest"] == 128
    assert (tmp_path / "encoder.html").stat().st_size > 10_000


@pytest.mark.usefixtures("tiny")
def test_memory_is_set_beside_a_line(sortyard: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {64: 1_000_000, 96: 2_000_000, 128: 6_000_000}

    def peak(_: str, fields: dict, **__: object) -> object:
        from sortyard.studies.bench.memory import Peak

        return Peak(peaks[fields["length"]], "told")

    monkeypatch.setattr("sortyard.studies.bench.comparison.peak_extra_memory", peak)
    words = ("--lengths", "64,96,128", "--dtypes", "fp32", "--sides", "sortyard", "--out", str(tmp_path))
    found = sortyard("bench", "encoder", *LIGHT, *words).json
    memory = found["summary"]["growth"]["fp32/fixed"]["sortyard"]["memory"]
    assert memory == {"lengths": [64, 96, 128], "peak_bytes": 6_000_000, "over_the_line": 2.0}


def test_ours_has_as_many_parameters_as_its_rivals() -> None:
    ours, larger, dense = sizes("sortyard"), sizes("sortyard-20"), sizes("sortyard-all-active")
    assert ours.total == pytest.approx(sizes("bert-large").total, rel=0.02)
    assert larger.total == pytest.approx(sizes("modernbert-large").total, rel=0.02)
    assert dense.total == pytest.approx(ours.total, rel=0.01)
    assert dense.active == dense.total
    assert ours.active < 0.5 * ours.total
    assert OURS["num_experts"] * OURS["moe_intermediate_size"] == ALL_ACTIVE["intermediate_size"]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_batches_hold_the_sentences_that_they_count(batching: str) -> None:
    case = replace(CASE, sentences=1024)
    made = make_batches(case, batching)
    assert made.sentences == 1024
    assert made.real_tokens == sum(short_lengths(0))
    if batching == "packed":
        assert sum(int(one["cu_seqlens"][-1]) for one in made.inputs) == made.real_tokens == made.all_tokens
        assert max(one["input_ids"].shape[1] for one in made.inputs) <= TOKENS_PER_BATCH["cpu"]
        return
    assert sum(int(one["attention_mask"].sum()) for one in made.inputs) == made.real_tokens
    assert sum(one["input_ids"].numel() for one in made.inputs) == made.all_tokens
    widths = [one["input_ids"].shape[1] for one in made.inputs]
    if batching == "padded":
        assert set(widths) == {128}
    elif batching in ("sorted", "tokens"):
        assert widths == sorted(widths, reverse=True)
        assert made.all_tokens < 1.05 * made.real_tokens
    else:
        assert 1.8 < made.all_tokens / made.real_tokens < 2.3


def test_a_sample_of_the_batches_is_as_long_as_all_of_them() -> None:
    everything = make_batches(replace(CASE, sentences=1024), "sorted")
    sample = make_batches(CASE, "sorted")
    assert len(sample.inputs) == 4
    assert sample.real_tokens / sample.sentences == pytest.approx(everything.real_tokens / 1024, rel=0.05)


def test_lengths_are_like_those_of_sst2() -> None:
    lengths = short_lengths(0)
    assert statistics.mean(lengths) == pytest.approx(25.2, rel=0.03)
    assert statistics.stdev(lengths) == pytest.approx(10.4, rel=0.06)
    assert (min(lengths) >= 5, max(lengths) <= 60) == (True, True)
    assert short_lengths(1) != lengths


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lengths", "sst2,many"), "--lengths many"),
        (("--lengths", "sst2", "--sides", "sortyard"), "--sides sortyard: is none of"),
        (("--lengths", "512", "--sides", "bert-lerge"), "did you mean bert-large"),
        (("--dtypes", "fp8"), "--dtypes fp8"),
    ],
)
def test_what_cannot_be_is_refused_before_work(words: tuple[str, ...], message: str, sortyard: Callable) -> None:
    ended = sortyard("bench", "encoder", *words)
    assert ended.status == 2
    assert message in ended.err
