"""Text into token shards: streamed, in bounded memory, and resumable after any interruption."""

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sortyard.data.locate import format_of, locate
from sortyard.data.options import CorpusOptions
from sortyard.data.reading import TextRow, read_corpus
from sortyard.data.shard_format import INDEX_NAME, Shard, ShardIndex, check_shards, read_index, tokenizer_sha256
from sortyard.data.shard_writing import ShardWriter, disk_errors, write_or_explain
from sortyard.data.skips import SkipLog
from sortyard.durable import ASIDE
from sortyard.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OnProgress = Callable[[int, int, int, int | None], None]
"""Called with documents, tokens and text bytes so far, and the bytes to expect where the files tell."""

_BATCH_TEXTS = 1000
_BATCH_CHARACTERS = 1_000_000
_FINGERPRINT_BYTES = 65_536
_READING_FIELDS = (
    "text_column", "format", "hub_config", "hub_split", "max_documents", "max_document_characters", "shard_tokens",
)  # fmt: skip


def prepare_shards(
    options: CorpusOptions,
    *,
    tokenizer: "PreTrainedTokenizerFast",
    out: str | Path,
    on_progress: OnProgress | None = None,
) -> ShardIndex:
    """Tokenise a corpus into a folder of shards.

    Each shard is written beside its place, synced and renamed, and only then listed in `index.json`. A run that is cut
    off continues after the last listed shard, and the files are the same as without the interruption. A finished folder
    is left as it is.

    Args:
        options: the source, and where documents and shards are cut; sequence_length and the rest play no part here.
        tokenizer: a fast tokenizer.
        out: the folder; it may be new, empty, or hold shards of the same source and tokenizer.
        on_progress: called after every batch of documents.

    Returns:
        The finished index, with what was skipped.

    Raises:
        InputError: the source cannot be read or holds no text (unless all is prepared, which does without it), `out`
            holds other data, or the disk is full.

    Source: temporary file, fsync and rename lose no completed file under SIGKILL at any moment.
    """
    folder = Path(out)
    there = read_index(folder) if folder.is_dir() else None
    try:
        source = source_sha256(options)
    except InputError:
        if there is None or not there.complete:
            raise
        source = there.source_sha256  # the text is gone, and nothing of it is needed any more
    index = _begin(folder, there, _blank_index(options, tokenizer, source=source))
    if index.complete:
        return index
    skipped = SkipLog()
    rows = read_corpus(options, on_skip=skipped.add)
    for _ in islice(rows, index.num_texts):  # read again rather than sought: what is skipped has to be counted anyway
        pass
    documents = _tokenised(rows, tokenizer)
    writer = ShardWriter(folder, number=len(index.shards), dtype=index.dtype)
    report = _Report(index, on_progress, total=_total_bytes(options))
    try:
        for tokens, text_bytes in documents:
            writer.add(tokens, text_bytes)
            report.add(tokens, text_bytes)
            if writer.num_tokens >= options.shard_tokens:
                index = _listed(folder, index, writer.finish())
                writer = ShardWriter(folder, number=len(index.shards), dtype=index.dtype)
        if writer.num_tokens:
            index = _listed(folder, index, writer.finish())
    finally:
        writer.discard()
    return _finish(folder, index, skipped)


def _finish(folder: Path, index: ShardIndex, skipped: SkipLog) -> ShardIndex:
    if not index.num_documents:
        raise InputError(f"{folder}: none of the {index.num_texts} texts gave a token; is it the right tokenizer?")
    if index.num_texts > index.num_documents:
        skipped.counts["no token of the vocabulary"] = index.num_texts - index.num_documents
    index = index.model_copy(update={"complete": True, "skipped": skipped.to_json()})
    _write_index(folder, index)
    return index


class _Report:
    """Progress over all shards, told once per batch rather than once per document."""

    def __init__(self, index: ShardIndex, on_progress: OnProgress | None, *, total: int | None) -> None:
        self._on_progress = on_progress
        self._documents, self._tokens, self._bytes = index.num_documents, index.num_tokens, index.text_bytes
        self._total = total
        self._told = self._bytes

    def add(self, tokens: NDArray[np.integer], text_bytes: int) -> None:
        self._documents += bool(len(tokens))
        self._tokens += len(tokens)
        self._bytes += text_bytes
        if self._on_progress is not None and self._bytes - self._told >= _BATCH_CHARACTERS:
            self._told = self._bytes
            self._on_progress(self._documents, self._tokens, self._bytes, self._total)


def _tokenised(
    rows: Iterator[TextRow], tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[tuple[NDArray[np.integer], int]]:
    core = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_truncation()
    core.no_padding()
    for texts in _batches(rows):
        for text, encoding in zip(texts, core.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            yield np.array(encoding.ids, dtype=np.uint32), len(text.encode("utf-8"))


def _batches(rows: Iterator[TextRow]) -> Iterator[list[str]]:
    texts: list[str] = []
    characters = 0
    for row in rows:
        texts.append(row.text)
        characters += len(row.text)
        if len(texts) == _BATCH_TEXTS or characters >= _BATCH_CHARACTERS:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts


def _blank_index(options: CorpusOptions, tokenizer: "PreTrainedTokenizerFast", *, source: str) -> ShardIndex:
    return ShardIndex(
        complete=False,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        source_sha256=source,
        reading={name: getattr(options, name) for name in _READING_FIELDS},
        dtype="<u2" if max(tokenizer.get_vocab().values()) < 65_535 else "<u4",
        shards=(),
        skipped={},
    )


def source_sha256(options: CorpusOptions) -> str:
    """Return a digest of a source: its files' names and sizes with their first and last 64 KB, or its hub name.

    Moving the files changes nothing; a change in the middle of a large file that keeps its size goes unseen.
    """
    found = locate(options.path)
    digest = hashlib.sha256(repr(found.hub_name).encode())
    for path in found.files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
            file.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def _total_bytes(options: CorpusOptions) -> int | None:
    files = locate(options.path).files
    if not files or options.max_documents is not None:
        return None
    if any(format_of(path, options.format) == "parquet" for path in files):
        return None
    return sum(path.stat().st_size for path in files)


def _begin(folder: Path, index: ShardIndex | None, blank: ShardIndex) -> ShardIndex:
    """Return the index to continue from: the folder's own where there is one, or the blank one."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; give a folder")
    with disk_errors(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
    if index is None:
        if others := sorted(path.name for path in folder.iterdir() if not path.name.startswith(ASIDE)):
            raise InputError(f"out: {folder} holds other files ({', '.join(others[:5])}); give a new or empty folder")
        _write_index(folder, blank)
        return blank
    differing = [name for name in ("tokenizer_sha256", "source_sha256", "dtype") if _differ(index, blank, name)]
    differing += [name for name in _READING_FIELDS if index.reading.get(name) != blank.reading[name]]
    if differing:
        raise InputError(
            f"out: {folder} holds shards of other data (differing: {', '.join(differing)}); "
            "give another folder, or, where nothing was trained on them, delete this one to prepare it anew"
        )
    check_shards(
        folder, index, verify="sizes" if index.complete else "auto"
    )  # whoever opens finished ones looks closer
    return index


def _differ(index: ShardIndex, blank: ShardIndex, name: str) -> bool:
    first: Any = getattr(index, name)
    return bool(first != getattr(blank, name))


def _listed(folder: Path, index: ShardIndex, shard: Shard) -> ShardIndex:
    index = index.model_copy(update={"shards": (*index.shards, shard)})
    _write_index(folder, index)
    return index


def _write_index(folder: Path, index: ShardIndex) -> None:
    write_or_explain(folder / INDEX_NAME, index.model_dump_json(indent=2).encode())
