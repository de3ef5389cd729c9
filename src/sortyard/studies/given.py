"""What a folder's results are made with: digests of what was given, kept so that nothing else takes its name."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sortyard.data.locate import locate
from sortyard.digests import files_digest
from sortyard.durable import replace_bytes
from sortyard.errors import InputError
from sortyard.reports.run_data import read_json

GIVEN = "given.json"


def keep_given(given: Mapping[str, Any], *, file: Path, remedy: str) -> None:
    """Keep what results are made with; a name that comes for the first time is added.

    Args:
        given: Digests, or other JSON values, by the name that the user knows.
        file: Where they are kept; its folder exists.
        remedy: What to do where they differ, for the message.

    Raises:
        InputError: a name stands for something else than it did, or the file is damaged.
    """
    wanted, kept = json.loads(json.dumps(dict(given))), read_json(file)
    differ = sorted(name for name in wanted if name in kept and kept[name] != wanted[name])
    if differ:
        raise InputError(f"{file.parent}: holds results with another {' and '.join(differ)}; {remedy}")
    replace_bytes(file, (json.dumps(kept | wanted, indent=2) + "\n").encode())


def text_digest(source: str) -> str:
    """Digest the files that a source of text stands for; a hub name stands for itself.

    Raises:
        InputError: there is no such source.
    """
    found = locate(source)
    return found.hub_name or files_digest(found.files)


def place_digest(place: Path) -> str:
    """Digest a file, or every file of a folder but the hidden ones."""
    if place.is_file():
        return files_digest([place])
    files = (path for path in sorted(place.rglob("*")) if path.is_file())
    return files_digest(path for path in files if not any(p.startswith(".") for p in path.relative_to(place).parts))


def digest_of(*arrays: NDArray[Any]) -> str:
    """A digest of arrays: their types, their shapes and every number."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def weights_digest(model: nn.Module) -> str:
    """Digest a model's tensors; a pooler's are left out: many checkpoints have none, and it is drawn anew each time."""
    named = sorted(model.state_dict().items())
    return digest_of(*(tensor.float().cpu().numpy() for name, tensor in named if not name.startswith("pooler.")))


def note_machine(machine: Mapping[str, Any], *, file: Path) -> list[dict[str, Any]]:
    """Add a machine to those that worked on a folder's results.

    Args:
        machine: As `describe_environment` has it.
        file: Where they are kept; its folder exists.

    Returns:
        All of them, in the order of their coming.
    """
    known = read_json(file).get("machines", [])
    if dict(machine) not in known:
        known = [*known, dict(machine)]
        replace_bytes(file, (json.dumps({"machines": known}, indent=2) + "\n").encode())
    return list(known)
