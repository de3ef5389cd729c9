"""A dense checkpoint to a sparse model's folder."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.durable import aside_of, publish
from sortyard.jobs.display import Display
from sortyard.jobs.folders import check_free, next_folder
from sortyard.recipe.yaml_tree import Tree
from sortyard.runs.folder import UPCYCLING

if TYPE_CHECKING:
    from sortyard.interop.upcycling import Upcycled

TOLERANCE = 1e-4
UNTRAINED_HEADS = ("classifier.", "qa_outputs.")


def upcycle_to_folder(source: str, *, settings: Tree, out: Path | None, display: Display) -> dict[str, Any]:
    """Upcycles a checkpoint and writes an ordinary model folder.

    A classifier that the checkpoint had no weights for is left out of the folder, so that nobody takes it for a
    trained one; fine-tuning makes a new one.

    Args:
        source: The checkpoint's folder or hub name.
        settings: Fields of `UpcyclingOptions`.
        out: The folder to write; None takes the next free `runs/NAME-upcycled-0001`.
        display: Told what is being done.

    Returns:
        JSON values: the folder, what became of the weights, and how far the model is from the original.

    Raises:
        InputError: The checkpoint, a setting or the folder cannot be used; then nothing is written.
        RuntimeError: The model does not compute what the checkpoint did though it should.
    """
    from sortyard.interop.upcycling.checkpoint import load_checkpoint, load_tokenizer
    from sortyard.interop.upcycling.convert import special_ids, upcycle_checkpoint
    from sortyard.interop.upcycling.options import upcycling_options

    options = upcycling_options(settings)
    path = out if out is not None else next_folder(f"{Path(source).name}-upcycled")
    check_free(path)
    checkpoint = load_checkpoint(source, head=options.head)
    tokenizer = load_tokenizer(source, model=checkpoint.model)
    display.say(f"original  {type(checkpoint.model).__name__}, {_millions(checkpoint.model)} parameters")
    upcycled = upcycle_checkpoint(checkpoint, options=options, token_ids=special_ids(tokenizer))
    display.say(f"sparse    {type(upcycled.model).__name__}, {_millions(upcycled.model)} parameters")
    difference = _checked_difference(upcycled)
    hub_name = None if Path(source).expanduser().exists() else source
    account = upcycled.report.as_dict() | {"base_model": hub_name, "largest_difference": difference}
    _write(upcycled, tokenizer=_fitted(tokenizer, model=upcycled.model), account=account, path=path)
    return {"folder": path, "architecture": type(upcycled.model).__name__, **account}


def _checked_difference(upcycled: "Upcycled") -> float:
    """Measures how far the two models are apart on random tokens.

    Raises:
        RuntimeError: They are apart though the report says that they are not.
    """
    from sortyard.interop.upcycling.checking import LENGTH, largest_difference

    report = upcycled.report
    length = min(LENGTH, upcycled.original.config.max_position_embeddings // 2, report.exact_up_to or LENGTH)
    difference = largest_difference(upcycled, length=max(length, 4))
    must_equal = report.exact_up_to is not None and report.exact_up_to >= length
    if must_equal and not difference.absolute <= TOLERANCE * max(1.0, difference.scale):
        raise RuntimeError(
            f"{report.source}: the sparse model differs from the original by {difference.absolute:.2g}, which it must "
            "not; the checkpoint has a setting that upcycling does not know of"
        )
    return difference.absolute


def _fitted(tokenizer: Any, *, model: Any) -> Any:
    """Makes a tokenizer announce the model's length, and give token types only to a model that has some."""
    tokenizer.model_max_length = model.config.max_position_embeddings
    if model.config.type_vocab_size < 2:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def _write(upcycled: "Upcycled", *, tokenizer: Any, account: dict[str, Any], path: Path) -> None:
    """Writes the folder aside and renames it."""
    new = {name for name in upcycled.report.new if name.startswith(UNTRAINED_HEADS)}
    weights = {name: tensor for name, tensor in upcycled.model.state_dict().items() if name not in new}
    aside = aside_of(path)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        upcycled.model.save_pretrained(aside, state_dict=weights)
        tokenizer.save_pretrained(str(aside))
        (aside / UPCYCLING).write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
        publish(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _millions(model: Any) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M"
