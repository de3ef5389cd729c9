"""Samples as training reads them, decoded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.data.options import CorpusOptions, MaskingOptions
from sortyard.errors import InputError
from sortyard.jobs.corpora import SHARDS, TOKENIZER, is_prepared
from sortyard.jobs.folders import is_demo, open_job
from sortyard.jobs.sections import pretrain_section
from sortyard.runs.folder import RunFolder

if TYPE_CHECKING:
    from sortyard.data.packing import PackedRows
    from sortyard.data.vocabulary import Vocabulary


def peek_at(source: Path, *, count: int, sequence_length: int, seed: int) -> list[dict[str, Any]]:
    """Returns the first rows of a prepared folder or a run, or the first documents of a text.

    Args:
        source: A prepared folder, a pretraining run, or anything that holds text.
        count: Rows or documents to return.
        sequence_length: Tokens of a row.
        seed: Of the masks.

    Returns:
        For a row: tokens, labels (null where nothing is asked), boundaries of the documents, and all of it as a text
        in which `|` is a boundary and `[MASK:word]` a hidden word. For a document: its text.

    Raises:
        InputError: There is no text, or the run is one of fine-tuning.
    """
    folder = _prepared_folder(source)
    if folder is None:
        return _documents(source, count=count)
    return _rows(folder, count=count, sequence_length=sequence_length, seed=seed)


def _prepared_folder(source: Path) -> Path | None:
    """Returns where the rows of a prepared folder, a run or a demo are; None for anything that is none of them."""
    if is_demo(source):
        source = source / "pretrain"
    for folder in (source, source / "data"):
        if is_prepared(folder):
            return folder
    if not (source / "resolved.yaml").is_file():
        return None
    job, recipe = open_job(RunFolder.open(source))
    if job.verb != "pretrain":
        raise InputError(
            f"{source}: is no pretraining run but a fine-tuning run, which has no rows; peek at the pretraining run "
            "that it started from, or at its file of examples"
        )
    path = pretrain_section(recipe).data.path
    if not is_prepared(path):
        raise InputError(f"{source}: has prepared no rows yet; continue it with `sortyard resume {source}`")
    return Path(path).expanduser()


def _documents(source: Path, *, count: int) -> list[dict[str, Any]]:
    from sortyard.data.reading import read_corpus

    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    skipped: list[str] = []
    options = CorpusOptions(path=str(source), max_documents=count)
    rows = read_corpus(options, on_skip=lambda reason, file, row: skipped.append(f"{file}:{row}: {reason}"))
    return [{"row": f"{row.file}:{row.row}", "text": row.text, "shown": row.text[:2000]} for row in rows]


def _rows(folder: Path, *, count: int, sequence_length: int, seed: int) -> list[dict[str, Any]]:
    from sortyard.data.packing import PackedRows
    from sortyard.data.shards import TokenShards
    from sortyard.data.vocabulary import Vocabulary
    from sortyard.tokenizer.train import load_tokenizer

    tokenizer = load_tokenizer(folder / TOKENIZER)
    vocabulary = Vocabulary.of(tokenizer)
    shards = TokenShards.open(folder / SHARDS, tokenizer=tokenizer, verify="sizes")
    rows = PackedRows(shards, sequence_length=sequence_length, vocabulary=vocabulary)
    names = tokenizer.convert_ids_to_tokens
    return [_row(rows, index, vocabulary=vocabulary, seed=seed, names=names) for index in range(min(count, len(rows)))]


def _row(rows: "PackedRows", index: int, *, vocabulary: "Vocabulary", seed: int, names: Any) -> dict[str, Any]:
    from sortyard.data.masking import IGNORED, mask_tokens

    ids, boundaries = rows.row(index)
    inputs, labels = mask_tokens(ids, epoch=0, sample=index, seed=seed, options=MaskingOptions(), vocabulary=vocabulary)
    tokens = names(inputs.tolist())
    targets = [None if label == IGNORED else names([label])[0] for label in labels.tolist()]
    starts = set(boundaries.tolist()[1:-1])
    words = []
    for place, (token, target) in enumerate(zip(tokens, targets, strict=True)):
        words += ["|"] if place in starts else []
        words.append(token if target is None else f"[{token.strip('[]')}:{target}]")
    return {
        "row": index,
        "tokens": tokens,
        "labels": targets,
        "boundaries": boundaries.tolist(),
        "shown": " ".join(words),
    }
