"""A dense checkpoint as transformers loads it, with its tokenizer; every failure in the user's terms."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ElectraForPreTraining,
    PreTrainedModel,
)

import sortyard  # noqa: F401  (registers the Auto classes, so that our own folders are told from strange ones)
from sortyard.errors import InputError, first_line
from sortyard.interop.folder_checks import check_model_folder
from sortyard.interop.predictor import TOKENIZER_FILES, check_vocabulary
from sortyard.interop.upcycling.families import family_of

DISCRIMINATOR = "discriminator"
_SUFFIXES = {
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
}
_LOADERS: dict[str, Any] = {
    "base": AutoModel,
    "masked_lm": AutoModelForMaskedLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    DISCRIMINATOR: ElectraForPreTraining,
}
_POOLER = "pooler"


@dataclass(frozen=True)
class Checkpoint:
    """A dense model.

    Attributes:
        model: as transformers has it.
        head: the head it was loaded with; a head of ours, or "discriminator".
        name: what to call it.
        untrained: names of weights that the files did not hold and transformers has drawn.
        unknown: names of weights in the files that `model` has no place for.
    """

    model: PreTrainedModel
    head: str
    name: str
    untrained: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()

    def weights(self) -> dict[str, Tensor]:
        """Trained weights, named without the encoder's prefix."""
        prefix = f"{self.model.base_model_prefix}."
        return {
            name.removeprefix(prefix): tensor.detach()
            for name, tensor in self.model.state_dict().items()
            if name not in self.untrained
        }


def given_checkpoint(model: Any, *, head: str) -> Checkpoint:
    """Take a model that the caller has.

    Args:
        model: a transformers model.
        head: a head of ours, or "auto".

    Raises:
        InputError: it is none, or of an architecture that cannot be upcycled.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"upcycle takes a folder, a hub name or a transformers model, not {type(model).__name__}")
    name = type(model).__name__
    family_of(model.config, where=name)
    own = head_of(name)
    if head in ("auto", own):
        return Checkpoint(model, head=own, name=name)
    prefix = f"{model.base_model_prefix}."
    others = [
        weight for weight in model.state_dict() if model.base_model is not model and not weight.startswith(prefix)
    ]
    return Checkpoint(model, head=head, name=name, untrained=frozenset(others), unknown=tuple(sorted(others)))


def load_checkpoint(source: str, *, head: str) -> Checkpoint:
    """Load a model's folder, or a model of the hub.

    Args:
        source: a folder or a hub name.
        head: a head of ours, or "auto" for the one it was saved with.

    Returns:
        The model in float32, on the CPU.

    Raises:
        InputError: there is no such model, it cannot be upcycled, or its weights are not those its configuration says.
    """
    start = _place_of(source)
    config = _load_config(start, source=source)
    family_of(config, where=source)
    names = config.architectures or ["Model"]
    chosen = head_of(names[0]) if head == "auto" else head
    try:
        model, found = _LOADERS[chosen].from_pretrained(
            start,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,  # a pickle could run anything
            ignore_mismatched_sizes=True,  # told apart below: a head may be new, the encoder may not
            output_loading_info=True,
        )
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise InputError(f"{source}: the model cannot be loaded: {first_line(error)}") from error
    missing = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    _check_encoder(missing, model=model, source=source)
    unknown = tuple(sorted(name for name in found["unexpected_keys"] if not name.endswith("_ids")))
    return Checkpoint(model, head=chosen, name=source, untrained=frozenset(missing), unknown=unknown)


def load_tokenizer(source: str, *, model: Any) -> Any:
    """Load the tokenizer beside a checkpoint.

    Args:
        source: the folder or hub name.
        model: the checkpoint's model.

    Raises:
        InputError: there is none that loads and fits, or only a slow one.
    """
    start = _place_of(source)
    path = Path(start)
    if path.is_dir() and not any((path / name).is_file() for name in (*TOKENIZER_FILES, "vocab.json")):
        raise InputError(
            f"{source}: has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); put its files beside the model's"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(start)
    except Exception as error:  # as above
        raise InputError(f"{source}: the tokenizer cannot be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{source}: has a slow tokenizer; convert it to a tokenizer.json first")
    check_vocabulary(model, tokenizer=tokenizer, where=source)
    return tokenizer


def head_of(architecture: str) -> str:
    """The head that a class of transformers has: ours, "discriminator", or "base" for all that we have none like."""
    if architecture == ElectraForPreTraining.__name__:
        return DISCRIMINATOR
    return next((head for suffix, head in _SUFFIXES.items() if architecture.endswith(suffix)), "base")


def _place_of(source: str) -> str:
    path = Path(source).expanduser()
    if not source.strip():
        raise InputError("the source is empty; give a checkpoint's folder or a hub name")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{source}: is no model folder, it has no config.json")
        check_model_folder(path)
        return str(path)
    if path.exists():
        raise InputError(f"{source}: is a file; give the folder that holds config.json and model.safetensors")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"{source}: there is no such folder; give a checkpoint's folder or a hub name")
    return source


def _load_config(start: str, *, source: str) -> Any:
    try:
        return AutoConfig.from_pretrained(start)
    except Exception as error:  # as above
        raise InputError(f"{source}: is no checkpoint that transformers knows: {first_line(error)}") from error


def _check_encoder(missing: set[str], *, model: PreTrainedModel, source: str) -> None:
    """Refuse random weights below the head; a pooler counts to the head, as language models are saved without one."""
    base = {name for name, _ in model.base_model.named_parameters()}
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    strange = sorted(name for name in missing if name.removeprefix(prefix) in base and _POOLER not in name.split("."))
    if strange:
        shown = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        raise InputError(
            f"{source}: the weights are not those that config.json describes: {len(strange)} tensors of the encoder "
            f"are missing or of another shape ({shown}); put back the files that were saved together"
        )
