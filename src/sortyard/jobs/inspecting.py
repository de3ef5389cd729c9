"""A model opened for the inspector: beside a server, or frozen into one page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.durable import replace_bytes
from sortyard.errors import InputError, first_line
from sortyard.jobs.folders import model_folder
from sortyard.jobs.loading import load_start_tokenizer, saved_class

if TYPE_CHECKING:
    from sortyard.reports.inspector.inspector import Inspector
    from sortyard.reports.inspector.page import Question

MAX_TEXT_BYTES = 400_000
MAX_PAGE_BYTES = 6_000_000


def open_inspector(source: Path) -> "Inspector":
    """Loads a model of any kind with its tokenizer.

    Args:
        source: A run, a demo, or a model's folder.

    Raises:
        InputError: There is no model, it does not load, or its weights or tokenizer are missing.
    """
    from sortyard.reports.inspector.inspector import Inspector

    folder = model_folder(source)
    tokenizer = load_start_tokenizer(str(folder))
    try:
        model, found = saved_class(folder).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except InputError:
        raise
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise InputError(f"{folder}: the model cannot be loaded: {first_line(error)}") from error
    if found["missing_keys"]:
        shown = ", ".join(sorted(found["missing_keys"])[:3])
        raise InputError(f"{folder}: weights are missing ({shown}); finish the run, or fine-tune the model first")
    return Inspector(model, tokenizer=tokenizer, name=source.resolve().name)


def read_text(path: Path, *, option: str) -> str:
    """Reads the text to look at.

    Raises:
        InputError: There is no such file, it is too large or no text.
    """
    if not path.is_file():
        raise InputError(f"{option} {path}: there is no such file")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise InputError(
            f"{option} {path}: has {path.stat().st_size:,} bytes; at most {MAX_TEXT_BYTES:,} can be looked at, so give "
            "a part of it"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{option} {path}: must be text in UTF-8 ({error})") from error


def freeze(inspector: "Inspector", question: "Question", *, out: Path) -> dict[str, Any]:
    """Writes a page that holds everything about a text.

    Args:
        inspector: The opened model.
        question: The text, and what is shown first.
        out: The file to write.

    Returns:
        JSON values: the file, its size, and how much of the model is in it.

    Raises:
        InputError: The text or the place cannot be used.
    """
    from sortyard.reports.inspector.page import frozen_page

    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out}: must be a file in a folder that exists, such as page.html")
    page, found = frozen_page(inspector, question)
    content = page.encode()
    if len(content) > MAX_PAGE_BYTES:
        raise InputError(f"--out {out}: would have {len(content):,} bytes, too many to pass on; shorten the text")
    replace_bytes(out, content)
    return {"page": out, "bytes": len(content), **found}
