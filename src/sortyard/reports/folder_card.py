"""The card of a model folder that belongs to no run: its own, or one that says what the folder knows."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from sortyard.errors import InputError
from sortyard.reports.card_metadata import Release, front_matter, is_own
from sortyard.reports.model_card import inline, render_template, size_sentence, snippet
from sortyard.reports.origin import base_model, upcycling_account
from sortyard.reports.run_data import Record, read_model

NO_SCORES = "No scores are known: this folder belongs to no run that measured some."


def folder_card(folder: Path, *, release: Release) -> str:
    """Return the card that a folder has, or else write one.

    Args:
        folder: The model's folder.
        release: Its licence and base model go into the header of either.

    Raises:
        InputError: The folder's card is damaged.
    """
    own = folder / "README.md"
    if not own.is_file():
        return _render(folder, release=release)
    try:
        text = own.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{own}: must be text in UTF-8 ({error}); write it anew or remove it") from error
    card = check_card(text, where=own)
    if release.license is None and release.base_model is None:
        return text
    header: Any = card.data
    header.license = release.license or header.license
    header.base_model = release.base_model or header.base_model
    return str(card)


def check_card(text: str, *, where: Path) -> ModelCard:
    """Read a card as the hub does, as far as that can be done without it.

    Raises:
        InputError: The header is no YAML mapping, or its results are not in the hub's form.
    """
    try:
        return ModelCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: the header between the lines of dashes cannot be used ({reason})") from error


def _render(folder: Path, *, release: Release) -> str:
    architecture, parameters = read_model(folder)
    account, name = upcycling_account(folder), release.place.rpartition("/")[2]
    origin = release.base_model or base_model(folder)
    kind = "A sparse encoder with bucket attention and routed experts" if is_own(architecture) else "A model"
    made = f", made from {inline(origin or 'a dense checkpoint')}" if account else ""
    return render_template(
        front_matter=front_matter(
            name=name, architecture=architecture, base_model=origin, evaluation=None, release=release
        ),
        title=inline(name),
        summary=f"{kind}{made}.{size_sentence(parameters)}",
        source="the model folder",
        snippet=snippet(architecture, place=release.place),
        results=None,
        course=NO_SCORES,
        training=_upcycled(account) if account else ["The folder records nothing of the training."],
        limits=["What the training text holds of errors and prejudice, the model may repeat; this was not measured."],
    )


def _upcycled(account: Record) -> list[str]:
    lines = ["Made from a dense checkpoint by `sortyard upcycle`, and not trained since."]
    if account.get("is_exact"):
        lines.append(f"Computes what the checkpoint did up to {account['exact_up_to']:,} tokens.")
    if "largest_difference" in account:
        lines.append(f"Largest difference from the checkpoint on random tokens: {account['largest_difference']:.1e}.")
    return lines
