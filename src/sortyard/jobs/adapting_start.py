"""What adapting starts from: the model, its tokenizer, its teacher, and the settings that depend on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.errors import InputError, first_line
from sortyard.jobs.folders import model_folder
from sortyard.recipe import AdaptSection
from sortyard.runs.folder import UPCYCLING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from sortyard.objectives.distillation import DistillationObjective

DENSE = "dense"
LONGEST_DEFAULT = 512
MASKED_LM = "SortyardForMaskedLM"


@dataclass(frozen=True)
class Start:
    """A sortyard model as it was saved.

    Attributes:
        place: Its folder or hub name.
        model: With the head it was saved with, in float32.
        tokenizer: The one beside it.
    """

    place: str
    model: Any
    tokenizer: "PreTrainedTokenizerFast"

    @property
    def has_masked_lm(self) -> bool:
        """Whether its head predicts masked tokens."""
        return type(self.model).__name__ == MASKED_LM


def find_model(source: str) -> str:
    """Turns a run's folder, a model's folder or a hub name into what transformers loads.

    Raises:
        InputError: It can only be a folder, and there is no model in it.
    """
    path = Path(source).expanduser()
    if path.exists() or source.startswith((".", "/", "~", "runs")) or source.count("/") > 1:
        return str(model_folder(path).resolve())
    return source


def load_start(place: str, *, seed: int) -> Start:
    """Loads a sortyard model with the head it was saved with.

    Weights that the folder holds no values for, such as the classifier that upcycling leaves out, are kept out of what
    is saved later, too.

    Args:
        place: What `find_model` returned.
        seed: Seed of such weights.

    Raises:
        InputError: It is no sortyard model, something is damaged, or weights of the encoder are missing.
    """
    import torch
    from transformers import AutoConfig

    from sortyard.interop.upcycling.checkpoint import load_tokenizer

    try:
        config = AutoConfig.from_pretrained(place)
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise InputError(f"{place}: no model can be loaded: {first_line(error)}") from error
    _check_kind(config, place=place)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, found = _class_of(config).from_pretrained(
                place, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # as above
        raise InputError(f"{place}: the model cannot be loaded: {first_line(error)}") from error
    _note_missing(model, missing=set(found["missing_keys"]), place=place)
    return Start(place, model, load_tokenizer(place, model=model))


def model_shapes(place: str) -> "nn.Module":
    """Builds the shapes of a sortyard model, for `--dry-run`.

    Raises:
        InputError: It is no sortyard model, or there is none.
    """
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place)
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise InputError(f"{place}: no model can be loaded: {first_line(error)}") from error
    _check_kind(config, place=place)
    with torch.device("meta"):
        shapes: nn.Module = _class_of(config)(config)
    return shapes


def settle(section: AdaptSection, *, place: str, model: Any) -> AdaptSection:
    """Returns the section with what it leaves open decided by the model.

    Args:
        section: As the recipe has it.
        place: The model's folder or hub name.
        model: The model, or its shapes.

    Raises:
        InputError: The model has no head for the objective, or too few positions.
    """
    objective = section.objective
    if objective == "auto":
        objective = "distil" if (Path(place) / UPCYCLING).is_file() else "masked_lm"
    if objective in ("masked_lm", "both") and type(model).__name__ != MASKED_LM:
        raise InputError(
            f"--objective {objective} needs a masked_lm head, and {place} is a {type(model).__name__}: upcycle with "
            "--head masked_lm, or follow a teacher with --objective distil, which needs no head"
        )
    positions: int = model.config.max_position_embeddings
    length = section.data.sequence_length
    if "sequence_length" not in section.data.model_fields_set:
        length = min(LONGEST_DEFAULT, positions)
    if length > positions:
        raise InputError(
            f"adapt.data.sequence_length: {length} is more than the {positions} positions of {place}; lower it, or "
            f"upcycle with --max-positions {length}"
        )
    data = section.data.model_copy(update={"sequence_length": length})
    return section.model_copy(update={"objective": objective, "data": data})


def load_teacher(section: AdaptSection, *, start: Start, seed: int) -> Any:
    """Returns the frozen encoder to be followed, on the CPU.

    Args:
        section: Names the teacher.
        start: The model that follows.
        seed: As in `load_start`.

    Raises:
        InputError: The teacher cannot be loaded, or does not fit the model.
    """
    from sortyard.objectives.distillation import frozen_dense_copy

    if section.teacher == DENSE:
        return frozen_dense_copy(start.model)
    teacher = load_start(find_model(section.teacher), seed=seed)
    _check_teacher(teacher, start=start, section=section)
    return teacher.model.base_model.eval().requires_grad_(False)


def make_objective(section: AdaptSection, *, following: "DistillationObjective") -> Any:
    """Returns what a settled section minimises."""
    from sortyard.objectives.distillation import DistilledMaskedLMObjective
    from sortyard.objectives.masked_lm import MaskedLMObjective

    if section.objective == "distil":
        return following
    return MaskedLMObjective() if section.objective == "masked_lm" else DistilledMaskedLMObjective(following)


def switch_off_dropout(model: Any) -> None:
    """Makes a model compute in training what it computes in evaluation; its configuration keeps its values."""
    from torch import nn

    from sortyard.model.attention.layer import SelfAttention

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, SelfAttention):
            module.dropout_prob = 0.0


def _class_of(config: Any) -> Any:
    """The class that a folder was saved from; the encoder where it does not say."""
    from sortyard.model.factory import HEADS
    from sortyard.model.modeling import SortyardModel

    by_name = {head.__name__: head for head in HEADS.values()}
    return by_name.get((config.architectures or [""])[0], SortyardModel)


def _check_kind(config: Any, *, place: str) -> None:
    if config.model_type != "sortyard":
        raise InputError(
            f"{place}: is a {config.model_type} model, and only sortyard models adapt; make one of it first: "
            f"sortyard upcycle {place}"
        )


def _note_missing(model: Any, *, missing: set[str], place: str) -> None:
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    strange = sorted(name for name in missing if name.startswith(prefix))
    if strange:
        raise InputError(
            f"{place}: the weights are not those that config.json describes: {len(strange)} tensors of the encoder are "
            f"missing ({', '.join(strange[:3])}); put back the files that were saved together"
        )
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *missing}


def _check_teacher(teacher: Start, *, start: Start, section: AdaptSection) -> None:
    """Refuses a teacher whose states cannot be laid beside the model's."""
    theirs, ours = teacher.model.config, start.model.config
    where = f"--teacher {section.teacher}"
    if teacher.tokenizer.get_vocab() != start.tokenizer.get_vocab():
        raise InputError(f"{where}: has another vocabulary than {start.place}; both must read the same tokens")
    names = ["hidden_size"] + ["num_hidden_layers"] * (section.distillation.layers == "all")
    for name in names:
        if getattr(theirs, name) != getattr(ours, name):
            raise InputError(
                f"{where}: {name} is {getattr(theirs, name)}, and that of {start.place} is {getattr(ours, name)}; "
                "choose a teacher of the same shape"
            )
    if theirs.max_position_embeddings < section.data.sequence_length:
        raise InputError(
            f"{where}: has {theirs.max_position_embeddings} positions; give --sequence-length "
            f"{theirs.max_position_embeddings} or less"
        )
