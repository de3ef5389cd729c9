"""Which files of a model folder go to a hub, and what is refused: no pickle, nothing damaged, no shard missing."""

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sortyard.errors import InputError

CARD = "README.md"
WEIGHTS, INDEX = "*.safetensors", "*.safetensors.index.json"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
WANTED = ("config.json", "generation_config.json", WEIGHTS, INDEX, *TOKENIZER, "LICENSE*", "NOTICE*")
CODE = "*.py"  # only where config.json says that the folder carries its own code
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
BINARY = {".safetensors", ".model"}


@dataclass(frozen=True)
class HubFolder:
    """A model folder as a hub should have it, without its card.

    Attributes:
        path: The folder.
        files: Names of what goes to the hub.
        left_out: Names of what stays, folders among them.
    """

    path: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]

    def size_of(self, name: str) -> int:
        """Bytes of one file."""
        return (self.path / name).stat().st_size


def collect(folder: Path) -> HubFolder:
    """Choose and check a model folder's files.

    Args:
        folder: It holds config.json and weights as safetensors.

    Raises:
        InputError: There is a pickle, there are no weights, or a file is damaged or missing.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name != CARD)
    for name in names:
        if Path(name).suffix in PICKLES:
            raise InputError(
                f"{folder / name}: is a pickle, which can run anything when it is loaded; save the model anew with "
                "save_pretrained, which writes safetensors, or move this file away"
            )
    wanted = (*WANTED, CODE) if "auto_map" in _json(folder / "config.json") else WANTED
    files = tuple(
        name for name in names if (folder / name).is_file() and any(fnmatch(name, pattern) for pattern in wanted)
    )
    _check_weights(folder, files=files)
    for name in files:
        _check_content(folder / name)
    if not any(name in TOKENIZER for name in files):
        raise InputError(f"{folder}: has no tokenizer (tokenizer.json or another); save it beside the model")
    return HubFolder(folder, files, tuple(name for name in names if name not in files))


def _check_weights(folder: Path, *, files: tuple[str, ...]) -> None:
    if not any(fnmatch(name, WEIGHTS) for name in files):
        raise InputError(f"{folder}: holds no weights (*.safetensors); give a folder that save_pretrained wrote")
    for index in (name for name in files if fnmatch(name, INDEX)):
        shards = _json(folder / index).get("weight_map")
        if not isinstance(shards, dict):
            raise InputError(f"{folder / index}: has no weight_map; save the model anew with save_pretrained")
        missing = sorted({str(shard) for shard in shards.values()} - set(files))
        if missing:
            raise InputError(f"{folder / index}: names {missing[0]}, which is not there; put the shard back")


def _check_content(path: Path) -> None:
    """Refuse what its name does not promise, such as a pickle called model.safetensors or vocab.txt."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy"):
                return
        except SafetensorError as error:
            raise InputError(f"{path}: is no safetensors file, or is damaged ({error}); save the model anew") from error
    if path.suffix == ".json":
        _json(path)
    elif path.suffix not in BINARY:
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: must be text in UTF-8 ({error}); save it anew or move it away") from error


def _json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); save the model anew or put the file back") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold one JSON object; save the model anew or put the file back")
    return content
