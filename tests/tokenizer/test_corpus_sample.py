"""A run's tokenizer: trained on a sample of a large corpus, spread evenly over its files, and told so."""

from pathlib import Path

from sortyard.data.options import CorpusOptions
from sortyard.jobs.corpora import prepare_corpus
from sortyard.jobs.display import Display
from sortyard.tokenizer.options import TokenizerOptions


def test_a_run_trains_its_tokenizer_on_a_sample_of_all_files(tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for word in ("alpha", "beta", "gamma", "delta"):
        (source / f"{word}.txt").write_text(f"{word} {word}\n\n\n" * 5000)
    options = CorpusOptions(path=str(source), sequence_length=16)
    told: list[str] = []
    corpus = prepare_corpus(
        options,
        tokenizer=TokenizerOptions(vocab_size=300, max_characters=4000),
        folder=tmp_path / "prepared",
        seed=0,
        display=Display(say=told.append),
    )
    num_bytes = sum(path.stat().st_size for path in source.iterdir())
    share = f"{100 * 16_000 / num_bytes:.2g}"
    assert told[1] == f"tokenizer reads {share} % of {num_bytes:,} bytes, in stretches spread evenly"
    assert told[2].startswith("tokenizer is trained on ")
    assert {"alpha", "beta", "gamma", "delta"} <= set(corpus.tokenizer.get_vocab())
