"""The digests of a checkpoint's files, in a file that is checked by a digest of its own."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

DIGESTS = "digests.json"
_NAME = re.compile(r"(model|optimizer)(-\d{5}-of-\d{5})?\.safetensors|state\.json")


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(path: Path, digest: str) -> bool:
    """Whether a file can be read and is what was written."""
    try:
        return digest_of(path) == digest
    except OSError:
        return False


def write_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Write down the digests of a folder's files."""
    (folder / DIGESTS).write_text(_text(digests), encoding="utf-8")


def list_files(folder: Path) -> tuple[dict[str, str], str | None]:
    """Files of a checkpoint with their digests, and what is wrong with the list, or None.

    The list must be byte for byte as it was written: then a file that does not match it is the damaged one.
    """
    path = folder / DIGESTS
    try:
        content = path.read_text(encoding="utf-8")
        found = json.loads(content)
        digests = {name: digest for name, digest in found.items() if name != DIGESTS}
        matches = [_NAME.fullmatch(name) for name in digests]
        has_all = {match[1] or match[0] for match in matches if match} == {"model", "optimizer", "state.json"}
        is_sound = all(matches) and has_all and content == _text(digests)
        strange = sorted(
            each.name for each in folder.iterdir() if each.name not in {DIGESTS, *found} and each.name[0] != "."
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}, f"{path} is missing or damaged"
    if not is_sound:
        return {}, f"{path} is missing or damaged"
    if strange:  # such as a pickle, which could run anything
        return {}, f"{folder / strange[0]} is no file of a checkpoint"
    return digests, None


def _text(digests: Mapping[str, str]) -> str:
    own = hashlib.sha256(json.dumps(digests, indent=1).encode()).hexdigest()
    return json.dumps({**digests, DIGESTS: own}, indent=1)
