"""What every run ends with: a look inside the model, the model card and the report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sortyard.jobs.display import Display
from sortyard.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NUM_TEXTS = 4


def write_documents(
    run: RunFolder, *, model: Any, tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], display: Display
) -> None:
    """Writes inspection.json, README.md and report.html into a finished run.

    Args:
        run: The run, its records and model written.
        model: The finished model.
        tokenizer: Its tokenizer.
        texts: Texts it was not trained on; the longest of the first few are looked at.
        display: Told where the report is.
    """
    from sortyard.reports.inspection import write_inspection
    from sortyard.reports.model_card import write_model_card
    from sortyard.reports.report import write_report

    if model.config.model_type == "sortyard" and texts:
        shown = sorted(texts[: 10 * NUM_TEXTS], key=len, reverse=True)[:NUM_TEXTS]
        write_inspection(run.path, model=model, tokenizer=tokenizer, texts=shown)
    write_model_card(run.path)
    report = write_report(run.path)
    display.say(f"report    {report}   open it in a browser")
