"""Models and tokenizers from folders and hub names, every failure in the user's terms."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.errors import InputError, first_line
from sortyard.interop.folder_checks import check_model_folder
from sortyard.jobs.display import Display
from sortyard.jobs.folders import model_folder

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from sortyard.data.glue import Task

SCRATCH = "scratch"
_QUIET = Display()


def find_start(source: str) -> str:
    """Turns what the user starts from into what transformers loads: a folder, or a hub name.

    Args:
        source: A run's folder, a model's folder, or a hub name.

    Raises:
        InputError: It is none of them.
    """
    path = Path(source).expanduser()
    if path.exists():
        return str(model_folder(path).resolve())
    if source.startswith((".", "/", "~", "runs")) or source.count("/") > 1:
        raise InputError(f"--from {source}: there is no such folder")
    return source


def load_start_tokenizer(start: str) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer beside a model.

    Raises:
        InputError: There is none that loads, or it is a slow one.
    """
    from transformers import AutoTokenizer

    import sortyard  # noqa: F401  (registers the Auto classes)

    try:
        tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise InputError(f"--from {start}: no tokenizer can be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"--from {start}: has a slow tokenizer; convert it to a tokenizer.json first")
    return tokenizer


def settle_padding(model: Any, *, tokenizer: Any, start: str, display: Display) -> None:
    """Lets the end token stand for padding where a language model has none, in the tokenizer and in the model.

    Raises:
        InputError: There is no end token either.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"--from {start}: its tokenizer has no padding token, and no end token that could stand for it; name "
                "one of its tokens as pad_token in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
        display.say(f"padding   {tokenizer.eos_token}, the end token, as the tokenizer has no padding token")
    if getattr(model.config, "pad_token_id", None) is None:  # heads that read the last token find it by this
        model.config.pad_token_id = tokenizer.pad_token_id


def saved_class(folder: Path) -> Any:
    """Returns the class that a model folder was saved as: one of ours, or transformers' own.

    Raises:
        InputError: config.json names none that is known.
    """
    import transformers

    from sortyard.model import heads, modeling

    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    name = names[0] if names else None
    homes = (heads, modeling, transformers)
    kind = next((getattr(home, str(name)) for home in homes if hasattr(home, str(name))), None)
    if kind is None:
        raise InputError(f"{folder}: config.json names the architecture {name!r}, which is not known here")
    return kind


def load_classifier(start: str, *, task: "Task", seed: int, display: Display = _QUIET) -> Any:
    """Loads a model with a new classification head of the task's width, or with the head it has for this very task.

    A head is kept if it has the task's width and the names of its classes are the task's, in the same order and
    whatever the case, or placeholders like LABEL_0; the one output of a regression has no name that counts.

    Args:
        start: A model's folder or a hub name.
        task: Gives the head's width and the labels' names.
        seed: Seed of a new head's weights.
        display: Told where a head that would fit is for other classes.

    Returns:
        The model in float32 on the CPU.

    Raises:
        InputError: Nothing with a sequence-classification head can be loaded, or the encoder's weights are not those
            that its configuration describes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    import sortyard  # noqa: F401  (registers the Auto classes)

    settings = head_settings(task)
    try:
        names = known_labels(AutoConfig.from_pretrained(start, trust_remote_code=False))
        config = AutoConfig.from_pretrained(start, trust_remote_code=False, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, found = AutoModelForSequenceClassification.from_pretrained(
                start,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,  # a pickle could run anything
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise _no_classifier(start, error) from error
    new = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    _check_encoder(new, prefix=f"{model.base_model_prefix}.", start=start)
    is_for_others = task.type == "classification" and names and _folded(names) != _folded(task.label_names)
    if is_for_others and _head_names(model) - new:
        _renew_head(model, seed=seed)
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        display.say(f"head      new: the one of {start} is for the classes {shown}")
    return model


def _folded(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.casefold() for name in names)


def known_labels(config: Any) -> tuple[str, ...]:
    """Returns the names that a model gives its classes, or none where they are transformers' placeholders."""
    names = tuple(str(name) for _, name in sorted(config.id2label.items()))
    return () if all(name.startswith("LABEL_") for name in names) else names


def _head_names(model: Any) -> set[str]:
    """Returns the names of the tensors above the encoder."""
    names = {name for name in model.state_dict() if not name.startswith(f"{model.base_model_prefix}.")}
    return names if model.base_model is not model else set()


def _renew_head(model: Any, *, seed: int) -> None:
    """Gives everything above the encoder the weights that a model of this configuration begins with."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = AutoModelForSequenceClassification.from_config(model.config, dtype=torch.float32).state_dict()
    model.load_state_dict({name: fresh[name] for name in _head_names(model)}, strict=False)


def _check_encoder(new: set[str], *, prefix: str, start: str) -> None:
    """Refuses random weights below the head; a pooler counts to the head, as language models are saved without one."""
    strange = sorted(name for name in new if name.startswith(prefix) and "pooler" not in name.split("."))
    if strange:
        shown = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        raise InputError(
            f"--from {start}: the weights are not those that config.json describes: {len(strange)} tensors of the "
            f"encoder are missing or of another shape ({shown}); put back the files that were saved together"
        )


def load_language_model(folder: Path, *, causal: bool) -> Any:
    """Loads the model of a pretraining run.

    Raises:
        InputError: It is missing or damaged.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    import sortyard  # noqa: F401  (registers the Auto classes)

    kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    check_model_folder(folder)
    try:
        model, found = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise InputError(f"{folder}: the model cannot be loaded: {first_line(error)}") from error
    if found["missing_keys"]:
        shown = ", ".join(sorted(found["missing_keys"])[:3])
        raise InputError(f"{folder}: weights are missing ({shown}); finish the run again")
    return model


def head_settings(task: "Task") -> dict[str, Any]:
    """Returns the configuration fields of a classification head for a task."""
    names = dict(enumerate(task.label_names)) if task.label_names else {0: "value"}
    return {
        "num_labels": task.num_labels,
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "problem_type": "regression" if task.type == "regression" else "single_label_classification",
    }


def start_shapes(start: str) -> "nn.Module":
    """Builds the shapes of the classifier that fine-tuning would start from, for `--dry-run`.

    Raises:
        InputError: There is no such model, or it has no classification head.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    import sortyard  # noqa: F401  (registers the Auto classes)

    try:
        config = AutoConfig.from_pretrained(start, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-any-return]
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise _no_classifier(start, error) from error


def _no_classifier(start: str, error: Exception) -> InputError:
    return InputError(f"--from {start}: no model for classification can be loaded: {first_line(error)}")
