"""From an upcycled model to one that has settled: distillation from its dense self, or masked LM, in a run folder."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.jobs.adapting_start import (
    Start,
    find_model,
    load_start,
    load_teacher,
    make_objective,
    settle,
    switch_off_dropout,
)
from sortyard.jobs.arithmetic import token_flops
from sortyard.jobs.display import Display
from sortyard.jobs.finishing import write_documents
from sortyard.jobs.folders import Job, check_free, create_run, discarded_if_untrained, next_folder
from sortyard.jobs.paths import absolute, fingerprint
from sortyard.jobs.pretraining import decoded_rows, save_tokenizer
from sortyard.jobs.sections import adapt_section
from sortyard.jobs.sparse_share import sequence_lengths, sparse_share
from sortyard.recipe import AdaptSection, LoadedRecipe, Recipe
from sortyard.runs.folder import RunFolder
from sortyard.runs.lock import run_lock
from sortyard.runs.trackers import check_trackers

if TYPE_CHECKING:
    from sortyard.data.batches import BatchSource
    from sortyard.data.packing import PackedRows
    from sortyard.data.vocabulary import Vocabulary
    from sortyard.jobs.corpora import Corpus
    from sortyard.objectives.distillation import DistillationObjective
    from sortyard.training.loop import TrainResult

FEW_STEPS = 20


def start_adapting(loaded: LoadedRecipe, *, start: str, out: Path | None, display: Display) -> dict[str, Any]:
    """Adapts a model in a new run folder.

    Args:
        loaded: The recipe.
        start: A run's or model's folder, or a hub name.
        out: The run's folder; None takes the next free `runs/NAME-0001`.
        display: Told what is being done.

    Returns:
        JSON values: the folder, the objective, steps, seconds, and the held-out figures before and after.

    Raises:
        InputError: The model, the text, the recipe or the folder cannot be used; then no folder is left behind.
    """
    from sortyard.jobs.corpora import check_corpus

    recipe = absolute(loaded.recipe)
    path = out if out is not None else next_folder(recipe.name)
    check_free(path)
    check_trackers(adapt_section(recipe).loop.trackers)
    check_corpus(adapt_section(recipe).data)
    material = _Material.load(recipe, place=find_model(start))
    recipe = _with_section(recipe, _timed(material, display=display))
    section = adapt_section(recipe)
    job = Job("adapt", start=material.start.place)
    files = [section.data.path]
    run = create_run(
        path, loaded=loaded, recipe=recipe, job=job, device=section.loop.device, fingerprint=fingerprint(files)
    )
    with run_lock(run.path), discarded_if_untrained(run):
        return _adapt(run, recipe=recipe, material=material, display=display)


def run_adapting(run: RunFolder, *, recipe: Recipe, start: str, display: Display) -> dict[str, Any]:
    """Does whatever is still to be done in a run that `start_adapting` made."""
    return _adapt(run, recipe=recipe, material=_Material.load(recipe, place=start), display=display)


@dataclass(frozen=True)
class _Material:
    """What adapting works on.

    Attributes:
        start: The model and its tokenizer.
        section: The settings, with nothing left open but the number of steps.
        following: The teacher, and how it is followed; measures the model also where it is not the objective.
    """

    start: Start
    section: AdaptSection
    following: "DistillationObjective"

    @classmethod
    def load(cls, recipe: Recipe, *, place: str) -> "_Material":
        """Loads model and teacher onto the device to train on."""
        from sortyard.data.vocabulary import Vocabulary
        from sortyard.objectives.distillation import DistillationObjective
        from sortyard.training.session import prepare_device

        section = adapt_section(recipe)
        start = load_start(place, seed=recipe.seed)
        Vocabulary.of(start.tokenizer)  # refuses a tokenizer without the special tokens before work is done
        section = settle(section, place=place, model=start.model)
        teacher = load_teacher(section, start=start, seed=recipe.seed)
        device = prepare_device(section.loop)
        start.model.to(device)
        if not section.keep_dropout:
            switch_off_dropout(start.model)
        return cls(start, section, DistillationObjective(teacher.to(device), options=section.distillation))

    @property
    def objective(self) -> Any:
        """What is minimised."""
        return make_objective(self.section, following=self.following)


def _with_section(recipe: Recipe, section: AdaptSection) -> Recipe:
    return recipe.model_copy(update={"adapt": section})


def _timed(material: _Material, *, display: Display) -> AdaptSection:
    """Lowers the number of steps to what fits into the time, so that the learning rate has fallen when it is up."""
    from sortyard.jobs.step_time import fitting_steps

    section, loop = material.section, material.section.loop
    if not 0 < loop.max_seconds < math.inf or loop.steps is None:
        return section
    fitting = fitting_steps(
        material.start.model, objective=material.objective, loop=loop, length=section.data.sequence_length
    )
    steps = min(loop.steps, fitting)
    minutes = loop.max_seconds / 60
    display.say(f"time      {_counted(steps, 'step')}, in at most {_counted(minutes, 'minute')}")
    return section.model_copy(update={"loop": loop.model_copy(update={"steps": steps})})


def _adapt(run: RunFolder, *, recipe: Recipe, material: _Material, display: Display) -> dict[str, Any]:
    model, tokenizer = material.start.model, material.start.tokenizer
    save_tokenizer(tokenizer, folder=run.model, positions=model.config.max_position_embeddings)
    corpus = _corpus(run, recipe=recipe, display=display)
    assert corpus.held_out is not None  # the section refuses to hold out nothing
    if (share := sparse_share(corpus.rows, model=model)) is not None:
        display.say(f"sparse    {share.text()}")
    held_out = _HeldOut(corpus.held_out, material=material, vocabulary=corpus.vocabulary, seed=recipe.seed)
    before = _before(run, model=model, held_out=held_out)
    display.say(f"before    {figures_text(before)}")
    result = _train(run, recipe=recipe, material=material, corpus=corpus, held_out=held_out, display=display)
    after = _figures(run.read_metrics("eval")[-1])
    write_documents(run, model=model, tokenizer=tokenizer, texts=decoded_rows(corpus), display=display)
    section, measured = adapt_section(recipe), sparse_share(corpus.held_out, model=model)
    return {
        "run": run.path,
        "model": run.model,
        "objective": section.objective,
        "teacher": section.teacher,
        "sequence_length": section.data.sequence_length,
        "sparsity": None if measured is None else measured.sparsity,
        "steps": result.state.step,
        "reason": result.state.finished,
        "tokens": result.state.tokens,
        "seconds": round(result.state.seconds, 3),
        "before": before,
        "after": after,
        "notes": _notes(before, after, steps=result.state.step),
    }


def _train(
    run: RunFolder,
    *,
    recipe: Recipe,
    material: _Material,
    corpus: "Corpus",
    held_out: "_HeldOut",
    display: Display,
) -> "TrainResult":
    from sortyard.training.loop import train

    section, model = adapt_section(recipe), material.start.model
    share = 0.0 if section.objective == "distil" else section.masking.probability
    return train(
        model,
        source=_source(corpus, section=section, seed=recipe.seed),
        objective=material.objective,
        loop=section.loop,
        optimizer=section.optimizer,
        schedule=section.schedule,
        run=run,
        seed=recipe.seed,
        evaluate=held_out,
        best_metric="loss",
        progress=display.progress("adapt"),
        flops=token_flops(model, lengths=sequence_lengths(corpus.rows), target_share=share),
    )


def _notes(before: dict[str, float], after: dict[str, float], *, steps: int) -> list[str]:
    """Says where adapting did not do what it is there for."""
    if after["loss"] < before["loss"]:
        return []
    few = f"{_counted(steps, 'step')} may be too few: give more --minutes, or " if steps < FEW_STEPS else ""
    return [
        f"the held-out loss did not fall ({before['loss']:.4g} -> {after['loss']:.4g}): {few}lower adapt.optimizer.lr"
    ]


def _counted(number: float, word: str) -> str:
    text = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{text} {word}{'' if number == 1 else 's'}"


def figures_text(figures: dict[str, float]) -> str:
    """Writes held-out figures on one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())


def _figures(record: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key not in ("kind", "step")}


def _corpus(run: RunFolder, *, recipe: Recipe, display: Display) -> "Corpus":
    """Cuts the text into rows with the model's own tokenizer.

    Raises:
        InputError: The text was prepared with another tokenizer.
    """
    from sortyard.jobs.corpora import prepare_for

    data = adapt_section(recipe).data
    return prepare_for(run.model, data, folder=run.path / "data", seed=recipe.seed, display=display)


def _before(run: RunFolder, *, model: Any, held_out: "_HeldOut") -> dict[str, float]:
    """Measures the model as it starts, once: a resumed run reads what it has measured."""
    for record in run.read_metrics("eval"):
        if record["step"] == 0:
            return _figures(record)
    figures = held_out(model)
    run.append_metric("eval", 0, figures)
    return figures


@dataclass(frozen=True)
class _HeldOut:
    """Measures a model on the first held-out rows; the same rows and masks every time."""

    rows: "PackedRows"
    material: _Material
    vocabulary: "Vocabulary"
    seed: int

    def __call__(self, model: Any) -> dict[str, float]:
        from sortyard.evaluation.following import following_score
        from sortyard.evaluation.perplexity import evaluate_language_model

        section = self.material.section
        found = following_score(model, objective=self.material.following, batches=self._batches(masked=False))
        figures = {"relative_error": found.relative_error, "token_cosine": found.token_cosine}
        if found.utilisation is not None:
            figures["utilisation"] = found.utilisation
        parts = {"distil": found.loss}
        can_mask = self.vocabulary.mask_id is not None or section.objective != "distil"  # the latter complains
        if self.material.start.has_masked_lm and can_mask:
            score = evaluate_language_model(model, batches=self._batches(masked=True))
            figures |= {"masked_lm_loss": score.loss, "accuracy": score.accuracy}
            parts |= {"masked_lm": score.loss, "both": score.loss + section.distillation.coef * found.loss}
        return {"loss": parts[section.objective], **figures}

    def _batches(self, *, masked: bool) -> Iterator[dict[str, Any]]:
        from sortyard.data.collate import collate_rows

        section = self.material.section
        count, size = min(len(self.rows), section.held_out_rows), section.loop.micro_batch_size
        for first in range(0, count, size):
            samples = [(0, row) for row in range(first, min(first + size, count))]
            masking = section.masking if masked else None
            yield collate_rows(self.rows, samples, vocabulary=self.vocabulary, masking=masking, seed=self.seed)


def _source(corpus: "Corpus", *, section: AdaptSection, seed: int) -> "BatchSource":
    from sortyard.data.batches import CausalLMSource, MaskedLMSource

    loop = section.loop
    sizes = {"micro_batch_size": loop.micro_batch_size, "accumulation_steps": loop.accumulation_steps}
    if section.objective == "distil":  # the rows as they are; distillation does not read their labels
        return CausalLMSource(corpus.rows, vocabulary=corpus.vocabulary, seed=seed, **sizes)
    return MaskedLMSource(corpus.rows, vocabulary=corpus.vocabulary, masking=section.masking, seed=seed, **sizes)
