"""The format of token shards on disk.

A folder of shards holds, per shard, `tokens-00000.bin` (little-endian uint16, or uint32 for vocabularies of 65,536
tokens and more; no special tokens), `documents-00000.npy` (int64, where each document begins, and the end) and
`checksums-00000.bin` (little-endian uint32, the CRC-32 of every 4,096 bytes of the one and then of the other), and one
`index.json` that lists them with their digests. `sortyard.data.prepare` writes them. Version 1 had no checksums.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sortyard.data.shard_blocks import REMEDY, SUM_BYTES, num_blocks
from sortyard.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INDEX_NAME = "index.json"
OFFSET_BYTES = 8
NPY_HEADER_BYTES = 128  # what numpy.save writes before the numbers of a one-dimensional array
VERIFIED_AT_ONCE = 1 << 30  # bytes of shards that are compared with their digests in a second or two

Verify = Literal["auto", "all", "sizes"]
"""What opening shards compares: the sizes of all files and, with "all", every file's digest, which reads it once.
"auto" is "all" up to a gibibyte, and for shards without checksums, whose blocks cannot be compared when they are read.
"""


class Shard(BaseModel):
    """The files of one shard.

    Attributes:
        tokens: name of the token file.
        documents: name of the offsets file.
        checksums: name of the file of block checksums; None in version 1.
        num_documents: documents in it.
        num_tokens: tokens in it.
        num_texts: texts read for it; more than documents where a text had no tokens.
        text_bytes: bytes of these texts in UTF-8.
        sha256: digests by file name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: str
    documents: str
    checksums: str | None = None
    num_documents: int
    num_tokens: int
    num_texts: int
    text_bytes: int
    sha256: dict[str, str]

    def sizes(self, token_bytes: int) -> dict[str, int]:
        """Return the bytes of each of its files, by name."""
        sizes = {
            self.tokens: self.num_tokens * token_bytes,
            self.documents: NPY_HEADER_BYTES + OFFSET_BYTES * (self.num_documents + 1),
        }
        if self.checksums is not None:
            sizes[self.checksums] = SUM_BYTES * sum(num_blocks(size) for size in sizes.values())
        return sizes


class ShardIndex(BaseModel):
    """What `index.json` holds.

    Attributes:
        version: of the format.
        complete: False while shards are still being written.
        tokenizer_sha256: digest of the tokenizer.
        source_sha256: digest of the source's file names, sizes, beginnings and ends.
        reading: the options that decide what is read and how it is cut into shards.
        dtype: of the tokens.
        shards: the finished shards, in order.
        skipped: counts and places of what was left out; known when complete.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["sortyard-shards"] = "sortyard-shards"
    version: Literal[1, 2] = 2
    complete: bool
    tokenizer_sha256: str
    source_sha256: str
    reading: dict[str, Any]
    dtype: Literal["<u2", "<u4"]
    shards: tuple[Shard, ...]
    skipped: dict[str, Any]

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.num_documents for shard in self.shards)

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_texts(self) -> int:
        """Texts that the shards were made from."""
        return sum(shard.num_texts for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """Bytes of these texts."""
        return sum(shard.text_bytes for shard in self.shards)


def read_index(folder: Path) -> ShardIndex | None:
    """Return the index of a folder of shards; None where there is none.

    Raises:
        InputError: the file is damaged or of another version.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        return None
    try:
        return ShardIndex.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: this is no index of token shards ({where}: {first['msg']})") from error


def check_shards(folder: Path, index: ShardIndex, *, verify: Verify) -> None:
    """Refuse shards that are missing, cut short or, as far as `verify` goes, changed.

    Raises:
        InputError: naming the file.
    """
    token_bytes = np.dtype(index.dtype).itemsize
    sizes = [shard.sizes(token_bytes) for shard in index.shards]
    has_checksums = all(shard.checksums is not None for shard in index.shards)
    is_small = sum(sum(by_name.values()) for by_name in sizes) <= VERIFIED_AT_ONCE
    digests = verify == "all" or (verify == "auto" and (is_small or not has_checksums))
    for shard, by_name in zip(index.shards, sizes, strict=True):
        for name, size in by_name.items():
            if Path(name).name != name:
                raise InputError(f"{folder / INDEX_NAME}: {name!r} is no file of this folder: damaged; {REMEDY}")
            _check_file(folder / name, size=size, sha256=shard.sha256.get(name, "") if digests else None)


def _check_file(path: Path, *, size: int, sha256: str | None) -> None:
    if not path.is_file():
        raise InputError(f"{path}: this file of the shards is missing; {REMEDY}")
    if (found := path.stat().st_size) != size:
        raise InputError(
            f"{path}: {found} bytes in place of {size}: {'cut short' if found < size else 'damaged'}; {REMEDY}"
        )
    if sha256 is not None and file_sha256(path) != sha256:
        raise InputError(f"{path}: its contents differ from the digest in {INDEX_NAME}: damaged; {REMEDY}")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return a digest of a tokenizer's rules and vocabulary, whatever truncation or padding is set on it."""
    core = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_truncation()
    core.no_padding()
    return hashlib.sha256(core.to_str().encode("utf-8")).hexdigest()
