"""The format of token shards on disk.

A folder of shards holds, per shard, `tokens-00000.bin` (little-endian uint16, or uint32 for vocabularies of 65,536
tokens and more; no special tokens) and `documents-00000.npy` (int64, where each document begins, and the end), and one
`index.json` that lists them with their digests. `sortyard.data.prepare` writes them.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sortyard.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INDEX_NAME = "index.json"


class Shard(BaseModel):
    """One pair of files.

    Attributes:
        tokens: name of the token file.
        documents: name of the offsets file.
        num_documents: documents in it.
        num_tokens: tokens in it.
        num_texts: texts read for it; more than documents where a text had no tokens.
        text_bytes: bytes of these texts in UTF-8.
        sha256: digests by file name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: str
    documents: str
    num_documents: int
    num_tokens: int
    num_texts: int
    text_bytes: int
    sha256: dict[str, str]


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
    version: Literal[1] = 1
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


def check_shard(folder: Path, shard: Shard, *, token_bytes: int, digests: bool) -> None:
    """Refuse a shard that is missing, cut short or, with `digests`, changed.

    Raises:
        InputError: naming the file.
    """
    for name in (shard.tokens, shard.documents):
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise InputError(f"{path}: this file of the shards is missing; prepare them again")
        if name == shard.tokens and path.stat().st_size != shard.num_tokens * token_bytes:
            raise InputError(
                f"{path}: {path.stat().st_size} bytes in place of {shard.num_tokens * token_bytes}: cut short"
            )
        if digests and file_sha256(path) != shard.sha256.get(name):
            raise InputError(f"{path}: its contents differ from the digest in {INDEX_NAME}: damaged; prepare it again")


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
