"""Model folders from anywhere: looked at before a library reads them, so that none can run code or exhaust the machine.

Nothing here imports torch or transformers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sortyard.errors import InputError

LARGE = ("tokenizer.json", "vocab.json")  # one line for each entry of the vocabulary
SMALL = (
    *("config.json", "generation_config.json", "adapter_config.json", "added_tokens.json"),
    *("tokenizer_config.json", "special_tokens_map.json"),
)
MAX_BYTES, MAX_LARGE_BYTES = 16 << 20, 256 << 20
MAX_DEPTH = 64
MAX_SIZE = 1 << 24  # of any width, count or length in config.json
MAX_LAYERS = 10_000
MAX_EMBEDDING = 1 << 34
PICKLES = ("adapter_model.bin",)  # which a library would read even where the model's own weights are safetensors


def check_model_folder(folder: Path) -> None:
    """Refuse a folder whose files are larger, deeper or other than those of a model.

    Args:
        folder: with config.json; what it lacks is for others to say.

    Raises:
        InputError: names the file.
    """
    for path in sorted(folder.iterdir()):
        if path.name in PICKLES:
            raise InputError(f"{path}: is a pickle, which could run anything; convert it to safetensors")
        is_index = path.name.endswith(".index.json")
        if not (path.is_file() and (is_index or path.name in (*LARGE, *SMALL))):
            continue
        limit = MAX_LARGE_BYTES if path.name in LARGE else MAX_BYTES
        if (size := path.stat().st_size) > limit:
            raise InputError(f"{path}: has {size:,} bytes; more than {limit:,} are refused")
        if path.name in LARGE:
            continue  # read by the tokenizers library, which bounds the depth itself
        content = _read(path)
        if path.name == "config.json":
            _check_sizes(path, content)
        elif is_index:
            _check_index(path, content)


def _read(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply") from error
    except ValueError:
        return None  # whoever needs the file says so
    if any(depth > MAX_DEPTH for depth, _, _ in _walk(content)):
        raise InputError(f"{path}: is nested more than {MAX_DEPTH} deep")
    return content


def _walk(content: Any) -> Iterator[tuple[int, str, Any]]:
    """Depth, key and value of everything inside, without recursion."""
    waiting = [(0, "", content)]
    while waiting:
        depth, key, value = waiting.pop()
        yield depth, key, value
        if isinstance(value, dict):
            waiting += [(depth + 1, str(name), child) for name, child in value.items()]
        elif isinstance(value, list):
            waiting += [(depth + 1, key, child) for child in value]


def _check_sizes(path: Path, config: Any) -> None:
    if not isinstance(config, dict):
        return
    for _, key, value in _walk(config):
        if not isinstance(value, int) or not (key.endswith(("_size", "_dim", "_embeddings")) or "num_" in key):
            continue
        limit = MAX_LAYERS if key.endswith("_layers") else MAX_SIZE
        if abs(value) > limit:
            raise InputError(f"{path}: {key} is {value}; more than {limit:,} is refused")
    vocabulary, width = config.get("vocab_size"), config.get("hidden_size")
    if isinstance(vocabulary, int) and isinstance(width, int) and vocabulary * width > MAX_EMBEDDING:
        raise InputError(
            f"{path}: vocab_size {vocabulary:,} times hidden_size {width:,} is more than {MAX_EMBEDDING:,}"
        )


def _check_index(path: Path, index: Any) -> None:
    """Weights lie beside their index, in safetensors; a library would follow it anywhere and into pickles."""
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict):
        raise InputError(f"{path}: has no weight_map")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise InputError(f"{path}: names {str(name)[:80]!r}; only safetensors files beside it are read")
