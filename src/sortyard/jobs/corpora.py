"""From a corpus' options to a tokenizer and rows: trained and sharded once, found again afterwards."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.data.options import CorpusOptions
from sortyard.data.stdlib import STDLIB
from sortyard.durable import aside_of
from sortyard.errors import InputError
from sortyard.jobs.display import Display
from sortyard.tokenizer.options import TokenizerOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from sortyard.data.packing import PackedRows
    from sortyard.data.shards import TokenShards
    from sortyard.data.vocabulary import Vocabulary

TOKENIZER, SHARDS = "tokenizer", "shards"
REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Corpus:
    """Text ready for pretraining.

    Attributes:
        tokenizer: The one its tokens come from.
        vocabulary: What packing and masking know of it.
        rows: The rows to train on.
        held_out: The rows to score on; None when none are held out.
        digest: Of all its tokens.
    """

    tokenizer: "PreTrainedTokenizerFast"
    vocabulary: "Vocabulary"
    rows: "PackedRows"
    held_out: "PackedRows | None"
    digest: str


def is_prepared(path: str | Path) -> bool:
    """Says whether a path is a folder that `sortyard data prep`, or a run, has prepared."""
    folder = Path(path).expanduser()
    return (folder / TOKENIZER).is_dir() and (folder / SHARDS / "index.json").is_file()


def existing_tokenizer(options: CorpusOptions, *, tokenizer: TokenizerOptions) -> Path | None:
    """Returns the folder of the tokenizer that a corpus will have; None where it is yet to be trained."""
    return Path(options.path).expanduser() / TOKENIZER if is_prepared(options.path) else tokenizer.path


def check_corpus(options: CorpusOptions) -> None:
    """Reads the first document, so that a wrong path or column is known before a run folder is made.

    Raises:
        InputError: The source cannot be read.
    """
    if not is_prepared(options.path) and not _is_stdlib(options):
        next(_texts(options))


def prepare_corpus(
    options: CorpusOptions, *, tokenizer: TokenizerOptions, folder: Path, seed: int, display: Display
) -> Corpus:
    """Trains or loads the tokenizer, writes the token shards, and packs the rows; what is done already is kept.

    Args:
        options: The source, which may be a prepared folder.
        tokenizer: What to train, or where to load from.
        folder: Where tokenizer and shards go.
        seed: Chooses the held-out documents.
        display: Told what is being done.

    Raises:
        InputError: The source or the tokenizer cannot be used.
    """
    from sortyard.data.packing import PackedRows
    from sortyard.data.shards import TokenShards
    from sortyard.data.vocabulary import Vocabulary
    from sortyard.tokenizer.train import load_tokenizer

    if is_prepared(options.path):
        folder = Path(options.path).expanduser()
        if tokenizer.path is not None:
            display.say(f"tokenizer.path is not used: {folder} brings its own tokenizer")
        for name in _unused(options):
            display.say(f"{name} is not used: {folder} was prepared before")
        chosen = load_tokenizer(folder / TOKENIZER)
        shards = TokenShards.open(folder / SHARDS, tokenizer=chosen)
    else:
        chosen, shards = _prepare(options, tokenizer=tokenizer, folder=folder, display=display)
    vocabulary = Vocabulary.of(chosen)
    settings: dict[str, Any] = {
        "sequence_length": options.sequence_length,
        "vocabulary": vocabulary,
        "validation_fraction": options.validation_fraction,
        "seed": seed,
        "packing": options.packing,
    }
    rows = PackedRows(shards, split="train", **settings)
    held_out = PackedRows(shards, split="validation", **settings) if options.validation_fraction > 0 else None
    display.say(
        f"data      {shards.num_documents:,} documents, {shards.num_tokens:,} tokens; {len(rows):,} rows of "
        f"{options.sequence_length}, {0 if held_out is None else len(held_out):,} held out"
    )
    files = json.dumps([shard.sha256 for shard in shards.index.shards], sort_keys=True)
    return Corpus(chosen, vocabulary, rows, held_out, hashlib.sha256(files.encode()).hexdigest()[:16])


def prepare_for(model: Path, options: CorpusOptions, *, folder: Path, seed: int, display: Display) -> Corpus:
    """Prepares text with the tokenizer of a model.

    Args:
        model: Folder of the model with its tokenizer.
        options: The source, which may be a prepared folder.
        folder: Where shards go.
        seed: Chooses the held-out documents.
        display: Told what is being done.

    Raises:
        InputError: The text cannot be read, or was prepared with another tokenizer.
    """
    from sortyard.tokenizer.train import load_tokenizer

    tokenizer = TokenizerOptions(path=None if is_prepared(options.path) else model)
    corpus = prepare_corpus(options, tokenizer=tokenizer, folder=folder, seed=seed, display=display)
    if corpus.tokenizer.get_vocab() != load_tokenizer(model).get_vocab():
        raise InputError(f"{options.path}: was prepared with another tokenizer than the model's; give the text")
    return corpus


def other_text(own: CorpusOptions, source: str) -> CorpusOptions:
    """Returns the options that read all of another text, none of it held out."""
    changes: dict[str, Any] = {"path": source, "format": "auto", "hub_config": None, "hub_split": "train"}
    return own.model_copy(update=changes | {"validation_fraction": 0.0, "max_documents": None})


def _unused(options: CorpusOptions) -> list[str]:
    """Names the settings of reading text, which a prepared folder does not follow, that are not as they come."""
    names = ("text_column", "format", "hub_config", "hub_split", "max_documents", "max_document_characters")
    return [name for name in names if getattr(options, name) != CorpusOptions.model_fields[name].default]


def prepare_folder(
    source: str, *, out: Path, vocab_size: int, tokenizer: Path | None, text_column: str, display: Display
) -> dict[str, Any]:
    """Prepares a source into a folder that recipes can name as `pretrain.data.path`.

    Returns:
        JSON values: the folder, its documents and tokens, and what was skipped.

    Raises:
        InputError: The source cannot be read, or the folder holds something else.
    """
    if out.exists() and not (out / TOKENIZER).is_dir() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"--out {out}: exists and is no prepared folder; choose a new or empty one")
    corpus = CorpusOptions(path=source, text_column=text_column)
    check_corpus(corpus)
    _check_tokenizer(tokenizer, folder=out / TOKENIZER)
    if tokenizer is None and _is_saved(out / TOKENIZER):
        display.say(f"tokenizer {out / TOKENIZER} is there, and is not trained anew")
    options = TokenizerOptions(vocab_size=vocab_size, path=tokenizer)
    _, shards = _prepare(corpus, tokenizer=options, folder=out, display=display)
    skipped = shards.index.skipped
    return {"out": out, "documents": shards.num_documents, "tokens": shards.num_tokens, "skipped": skipped}


def _check_tokenizer(asked: Path | None, *, folder: Path) -> None:
    """Refuses another tokenizer than a folder that was begun has already."""
    if asked is None or not _is_saved(folder):
        return
    from sortyard.tokenizer.train import load_tokenizer

    if load_tokenizer(asked).get_vocab() != load_tokenizer(folder).get_vocab():
        raise InputError(f"--tokenizer {asked}: {folder.parent} was begun with another tokenizer; choose another --out")


def _prepare(
    options: CorpusOptions, *, tokenizer: TokenizerOptions, folder: Path, display: Display
) -> "tuple[PreTrainedTokenizerFast, TokenShards]":
    from sortyard.data.shards import TokenShards, prepare_shards

    given = _given_tokenizer(tokenizer, folder=folder / TOKENIZER)  # a bad one leaves no folder behind
    folder.mkdir(parents=True, exist_ok=True)
    options = _resolved(options, folder=folder)
    chosen = given if given is not None else _trained_tokenizer(options, tokenizer=tokenizer, display=display)
    if not _is_saved(folder / TOKENIZER):
        # Moved into place whole: an interrupted save must not pass for a tokenizer when the run is resumed.
        aside = aside_of(folder / TOKENIZER)
        chosen.save_pretrained(str(aside))
        aside.replace(folder / TOKENIZER)
    index = prepare_shards(options, tokenizer=chosen, out=folder / SHARDS, on_progress=_reporter(display))
    for reason, count in index.skipped.get("counts", {}).items():
        places = ", ".join(index.skipped.get("places", {}).get(reason, ()))
        display.say(f"skipped   {count} x {reason} ({places})")
    return chosen, TokenShards.open(folder / SHARDS, tokenizer=chosen)


def _is_saved(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def _given_tokenizer(tokenizer: TokenizerOptions, *, folder: Path) -> "PreTrainedTokenizerFast | None":
    """Loads the tokenizer that the folder has already, or the one asked for; None where one is to be trained."""
    from sortyard.tokenizer.train import load_tokenizer

    path = folder if _is_saved(folder) else tokenizer.path
    return None if path is None else load_tokenizer(path)


def _trained_tokenizer(
    options: CorpusOptions, *, tokenizer: TokenizerOptions, display: Display
) -> "PreTrainedTokenizerFast":
    from sortyard.data.reading import read_sample
    from sortyard.tokenizer.train import train_tokenizer

    display.say(f"tokenizer training {tokenizer.algorithm}, at most {tokenizer.vocab_size:,} entries")
    texts = read_sample(options, max_characters=tokenizer.max_characters, say=display.say)
    return train_tokenizer(texts, tokenizer, say=display.say)


def _texts(options: CorpusOptions) -> Iterator[str]:
    from sortyard.data.reading import read_corpus

    return (row.text for row in read_corpus(options, on_skip=lambda *_: None))


def _is_stdlib(options: CorpusOptions) -> bool:
    return options.path == STDLIB and not Path(STDLIB).exists()


def _resolved(options: CorpusOptions, *, folder: Path) -> CorpusOptions:
    """Writes the running Python's own documentation into a file where a recipe asks for it."""
    if not _is_stdlib(options):
        return options
    from sortyard.data.stdlib_task import TEXT, write_stdlib_files

    write_stdlib_files(folder)
    return options.model_copy(update={"path": str((folder / TEXT).resolve()), "text_column": "text"})


def _reporter(display: Display) -> Any:
    last = time.monotonic()

    def report(documents: int, tokens: int, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_SECONDS:
            last = time.monotonic()
            share = f" ({100 * done / total:.0f} %)" if total else ""
            display.say(f"shards    {documents:,} documents, {tokens:,} tokens{share}")

    return report
