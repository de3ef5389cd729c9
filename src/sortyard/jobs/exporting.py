"""A finished model into a folder for others: an ordinary Hugging Face folder, a traced program, or an ONNX file."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from sortyard.durable import aside_of, publish
from sortyard.errors import InputError
from sortyard.jobs.display import Display
from sortyard.jobs.folders import check_free, model_folder, next_folder
from sortyard.jobs.loading import saved_class

Form = Literal["huggingface", "torch", "onnx"]
PROGRAMS, ACCOUNT = {"torch": "model.pt2", "onnx": "model.onnx"}, "export.json"
TOLERANCE = 1e-4
WEIGHTS = "*.safetensors*"  # and their index


def export_to_folder(source: Path, *, form: Form, out: Path | None, display: Display) -> dict[str, Any]:
    """Write the model of a run, or of a folder, for use elsewhere.

    Args:
        source: A run's folder, a demo's, or a model's.
        form: "huggingface" copies configuration, weights and tokenizer; "torch" writes a program of torch.export
            in place of the weights, "onnx" a file for onnxruntime, both checked against the model.
        out: The folder to write; None takes the next free `runs/NAME-FORMAT-0001`.
        display: Told what is being done.

    Returns:
        JSON values: the folder, its files, and for a program how far it is from the model.

    Raises:
        InputError: There is no model, it does not load or cannot be traced, or the folder is taken.
        RuntimeError: The program does not compute what the model does.
    """
    if form == "onnx":
        from sortyard.interop.onnx.program import check_packages

        check_packages()
    folder = model_folder(source)
    path = out if out is not None else next_folder(f"{source.resolve().name}-{form}")
    check_free(path)
    aside = aside_of(path)
    shutil.rmtree(aside, ignore_errors=True)
    left_out = shutil.ignore_patterns(WEIGHTS) if form in PROGRAMS else None
    try:
        shutil.copytree(folder, aside, ignore=left_out)
        found = _write_program(folder, form=form, aside=aside, display=display) if form in PROGRAMS else {}
        if path.exists():  # and is empty
            path.rmdir()
        publish(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    files = sorted(file.name for file in path.iterdir())
    return {"folder": str(path), "format": form, "files": files, **found}


def _write_program(folder: Path, *, form: Form, aside: Path, display: Display) -> dict[str, Any]:
    import torch

    from sortyard.interop.exporting import worst_of

    model = _load(folder)
    display.say(f"tracing   {type(model).__name__}")
    write = _write_onnx if form == "onnx" else _write_torch
    if getattr(model.config, "type_vocab_size", 0) > 1:
        display.say("note      the program takes no token types: a pair of texts is read as all of type 0")
    differences, draws = write(model, aside / PROGRAMS[form])
    worst = worst_of(differences.values())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"the program is {worst:.1e} away from the model; nothing is written")
    account = {
        "program": PROGRAMS[form],
        "largest_difference": differences,
        "draws": draws,
        "torch": torch.__version__,
    }
    (aside / ACCOUNT).write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
    return account


def _write_torch(model: Any, path: Path) -> tuple[dict[str, float], int]:
    import torch

    from sortyard.interop.exporting import export_program, largest_difference

    program = export_program(model)
    torch.export.save(program, path)
    return largest_difference(program.module(), model), 1


def _write_onnx(model: Any, path: Path) -> tuple[dict[str, float], int]:
    from sortyard.interop.onnx.program import export_onnx, load_onnx, onnx_difference

    export_onnx(model, path)
    return onnx_difference(load_onnx(path), model, tolerance=TOLERANCE)


def _load(folder: Path) -> Any:
    kind = saved_class(folder)
    try:
        model, found = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise InputError(f"{folder}: the model does not load ({error})") from error
    missing = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if missing:
        raise InputError(
            f"{folder}: has no weights for {', '.join(missing[:3])}, which would be drawn at random; fine-tune the "
            "model first"
        )
    return model.eval()
