"""One cell: a pretrained model with its attention swapped, scored as it is or after some steps of fine-tuning."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from sortyard.data.batches import Batch, MaskedLMSource, masked_lm_validation
from sortyard.data.options import MaskingOptions
from sortyard.data.order import global_samples
from sortyard.data.packing import PackedRows
from sortyard.data.vocabulary import Vocabulary
from sortyard.evaluation.perplexity import evaluate_language_model
from sortyard.model.heads import SortyardForMaskedLM, SortyardForSequenceClassification
from sortyard.objectives.classification import ClassificationObjective
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.objectives.total import Objective
from sortyard.studies.gates.arms import Trainee
from sortyard.studies.gates.training import take_steps
from sortyard.studies.sparsity.cores import Setting, swap_attention
from sortyard.studies.sparsity.plan import AS_IS, SETTING, TASK, Cell
from sortyard.studies.sparsity.settings import capture_projections, find_setting, measured_sparsity
from sortyard.studies.sparsity.texts import LabelledText, Text

Json = dict[str, Any]
MASKING = MaskingOptions(probability=0.15, whole_word=False)
MASK_SEED = 0
ADAPT_TOKENS, TASK_TOKENS = 2048, 4096  # of a step, whatever the length
ADAPT_LR, TASK_LR = 3e-4, 5e-4
_EVALUATION_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Workbench:
    """What every cell needs.

    Attributes:
        model: A folder that transformers loads.
        vocabulary: Of the model's tokenizer.
        texts: Passages by length.
        tasks: Labelled passages by length.
        adapt_steps: Steps of fine-tuning on text.
        task_steps: Steps of fine-tuning on the task.
        device: Where models are trained and scored; settings are found on the CPU.
    """

    model: str
    vocabulary: Vocabulary
    texts: Mapping[int, Text]
    tasks: Mapping[int, LabelledText]
    adapt_steps: int
    task_steps: int
    device: str

    def data(self, cell: Cell) -> str:
        """A digest of what a cell reads, as cells are only compared over the same."""
        return (self.tasks if cell.measure == TASK else self.texts)[cell.length].digest()


def measure_cell(cell: Cell, setting: Setting | None, bench: Workbench) -> Json:
    """Measure a cell.

    Args:
        cell: What to measure.
        setting: The attention; None for a cell that finds one.
        bench: The model and the data.

    Returns:
        For a setting its record and measured sparsity, else the score; and the seconds it took.

    Raises:
        ArithmeticError: a loss or gradient was not finite.
    """
    start = time.perf_counter()
    if setting is None:
        assert cell.measure == SETTING
        found = _find(cell, bench)
    elif cell.measure == TASK:
        found = {"score": _task_accuracy(cell, setting, bench)}
    else:
        found = _language_model_score(cell, setting, bench)
    return {**cell._asdict(), "data": bench.data(cell), **found, "seconds": round(time.perf_counter() - start, 2)}


def _find(cell: Cell, bench: Workbench) -> Json:
    """Find a setting on one held-out passage, and measure it again on another."""
    model = _masked_lm(bench)
    rows = [batch["input_ids"] for batch in _held_out(cell.length, bench, rows_at_once=1)[:2]]
    projections = [capture_projections(model, row) for row in rows]
    setting, _ = find_setting(cell.selection, cell.sparsity, projections=projections[0])
    measured = [measured_sparsity(setting, found) for found in projections]
    return {"setting": setting.record(), "measured": sum(measured) / len(measured)}


def _language_model_score(cell: Cell, setting: Setting, bench: Workbench) -> Json:
    model = _masked_lm(bench)
    swap_attention(model, setting)
    if cell.measure != AS_IS:
        rows = PackedRows(
            bench.texts[cell.length].training, sequence_length=cell.length, vocabulary=bench.vocabulary, packing=False
        )
        source = MaskedLMSource(
            rows, vocabulary=bench.vocabulary, masking=MASKING, seed=cell.seed,
            micro_batch_size=max(1, ADAPT_TOKENS // cell.length),
        )  # fmt: skip
        _fine_tune(
            model, source.step, objective=MaskedLMObjective(), steps=bench.adapt_steps, lr=ADAPT_LR, seed=cell.seed
        )
    batches = _held_out(cell.length, bench, rows_at_once=max(1, _EVALUATION_TOKENS // cell.length))
    found = evaluate_language_model(model, batches=batches)
    return {"score": found.loss, "token_accuracy": found.accuracy, "targets": found.num_targets}


def _masked_lm(bench: Workbench) -> Any:
    model = SortyardForMaskedLM.from_pretrained(bench.model, dtype=torch.float32, use_safetensors=True)
    return model.to(bench.device)


def _held_out(length: int, bench: Workbench, *, rows_at_once: int) -> list[Batch]:
    rows = PackedRows(bench.texts[length].held_out, sequence_length=length, vocabulary=bench.vocabulary, packing=False)
    return list(
        masked_lm_validation(
            rows, vocabulary=bench.vocabulary, masking=MASKING, batch_size=rows_at_once, seed=MASK_SEED
        )
    )


def _task_accuracy(cell: Cell, setting: Setting, bench: Workbench) -> float:
    task = bench.tasks[cell.length]
    model = _classifier(bench.model, num_labels=len(task.labels), seed=cell.seed).to(bench.device)
    swap_attention(model, setting)
    ids, labels = task.training
    rows = min(len(ids), max(1, TASK_TOKENS // cell.length))

    def step(number: int) -> list[Batch]:
        drawn = global_samples(number, batch_size=rows, num_samples=len(ids), seed=cell.seed)
        chosen = torch.tensor([sample for _, sample in drawn])
        return [{"input_ids": ids[chosen], "attention_mask": torch.ones_like(ids[chosen]), "labels": labels[chosen]}]

    _fine_tune(model, step, objective=ClassificationObjective(), steps=bench.task_steps, lr=TASK_LR, seed=cell.seed)
    return _accuracy(model, *task.held_out, rows_at_once=rows)


def _classifier(folder: str, *, num_labels: int, seed: int) -> Any:
    """A classifier whose encoder is the model's; it reads the mean, which every attention can fill."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # that the classifier is new is known here
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SortyardForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, num_labels=num_labels, classifier_pooling="mean",
                problem_type="single_label_classification",
            )  # fmt: skip
    finally:
        logging.set_verbosity(before)


@torch.inference_mode()
def _accuracy(model: Any, ids: torch.Tensor, labels: torch.Tensor, *, rows_at_once: int) -> float:
    model.eval()
    chosen = [model(input_ids=rows.to(model.device)).logits.argmax(-1).cpu() for rows in torch.split(ids, rows_at_once)]
    return float((torch.cat(chosen) == labels).float().mean())


def _fine_tune(
    model: Any, step: Callable[[int], Sequence[Batch]], *, objective: Objective, steps: int, lr: float, seed: int
) -> None:
    """The same steps for every attention: data, order, seeds and learning rates."""
    model.train()
    trainee = Trainee(
        head="masked_lm", options=model.config.options(), vocab_size=model.config.vocab_size, lr=lr, batch_size=0,
        length=0, predictions=0,
    )  # fmt: skip
    losses = take_steps(model, step, trainee=trainee, objective=objective, steps=steps, total_steps=steps, seed=seed)
    assert all(map(math.isfinite, losses))


def settings() -> Json:
    """What every cell is measured with, as JSON values."""
    return {
        "masking": MASKING.model_dump(), "mask_seed": MASK_SEED, "adapt_tokens": ADAPT_TOKENS,
        "task_tokens": TASK_TOKENS, "adapt_lr": ADAPT_LR, "task_lr": TASK_LR,
    }  # fmt: skip
