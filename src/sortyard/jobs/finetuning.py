"""Phase 2: from a pretrained model to a task, in a run folder."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.errors import InputError
from sortyard.jobs.arithmetic import token_flops
from sortyard.jobs.display import Display
from sortyard.jobs.finishing import write_documents
from sortyard.jobs.folders import Job, check_free, create_run, discarded_if_untrained, next_folder, write_job
from sortyard.jobs.loading import (
    SCRATCH,
    find_start,
    head_settings,
    load_classifier,
    load_start_tokenizer,
    settle_padding,
)
from sortyard.jobs.paths import absolute, fingerprint
from sortyard.jobs.pretraining import save_tokenizer
from sortyard.jobs.sections import finetune_section
from sortyard.recipe import LoadedRecipe, Recipe
from sortyard.runs.folder import RunFolder
from sortyard.runs.lock import run_lock
from sortyard.runs.trackers import check_trackers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from sortyard.data.encoding import EncodedExamples
    from sortyard.data.examples import Examples
    from sortyard.evaluation.classification import EvaluationResult


def start_finetuning(loaded: LoadedRecipe, *, start: str, out: Path | None, display: Display) -> dict[str, Any]:
    """Fine-tunes a model in a new run folder.

    Args:
        loaded: The recipe.
        start: A run's or model's folder, a hub name, or `scratch` for the recipe's own model section.
        out: The run's folder; None takes the next free `runs/NAME-0001`.
        display: Told what is being done.

    Returns:
        JSON values: the folder, scores, baselines, steps and seconds.

    Raises:
        InputError: The examples, the model, the recipe or the folder cannot be used; then no folder is left behind.
    """
    recipe = absolute(loaded.recipe)
    section = finetune_section(recipe)
    task = section.task
    name = recipe.name if task.name in recipe.name else f"{recipe.name}-{task.name}"
    path = out if out is not None else next_folder(name)
    check_free(path)
    check_trackers(section.loop.trackers)
    source = start if start == SCRATCH else find_start(start)
    material = _Material.load(recipe, start=source, display=display)
    files = [item for item in (task.data, task.dev) if item is not None]
    job = Job("finetune", start=source, examples=material.digest())
    run = create_run(
        path, loaded=loaded, recipe=recipe, job=job, device=section.loop.device, fingerprint=fingerprint(files)
    )
    with run_lock(run.path), discarded_if_untrained(run):
        return _finetune(run, recipe=recipe, material=material, display=display)


def run_finetuning(
    run: RunFolder, *, recipe: Recipe, job: Job, allows_other_examples: bool, display: Display
) -> dict[str, Any]:
    """Does whatever is still to be done in a run that `start_finetuning` made.

    Args:
        run: The run.
        recipe: Its recipe.
        job: What `start_finetuning` kept.
        allows_other_examples: Whether the examples may be others than before.
        display: Told what is being done.

    Raises:
        InputError: The examples have changed, or what the run needs is gone.
    """
    assert job.start is not None
    material = _Material.load(recipe, start=job.start, saved=run.model, display=display)
    digest = material.digest()
    if job.examples not in (None, digest):
        if not allows_other_examples:
            raise InputError(
                f"{finetune_section(recipe).task.data}: the examples, or which of them are held out, are not those "
                f"that {run.path} was begun with; put them back, or go on with these by --allow finetune.task.data"
            )
        write_job(run, replace(job, examples=digest))
    return _finetune(run, recipe=recipe, material=material, display=display)


@dataclass(frozen=True)
class _Material:
    """What fine-tuning works on."""

    model: Any
    tokenizer: "PreTrainedTokenizerFast"
    train: "Examples"
    dev: "Examples"

    @classmethod
    def load(cls, recipe: Recipe, *, start: str, display: Display, saved: Path | None = None) -> "_Material":
        """Loads all of it; a resumed run from scratch takes the tokenizer that it saved."""
        from sortyard.data.tasks import load_examples
        from sortyard.interop.predictor import check_vocabulary

        options = finetune_section(recipe).task
        train, dev = load_examples(options, "train"), load_examples(options, "dev")
        for name, split in (("training", train), ("development", dev)):
            if split.skipped.total:
                display.say(f"skipped   {split.skipped.total} {name} rows: {split.skipped.describe()}")
        display.say(f"examples  {len(train):,} to train on, {len(dev):,} to score")
        if start == SCRATCH:
            model, tokenizer = _from_scratch(recipe, train=train, saved=saved, display=display)
        else:
            tokenizer = load_start_tokenizer(start)
            model = load_classifier(start, task=train.task, seed=recipe.seed, display=display)
            check_vocabulary(model, tokenizer=tokenizer, where=f"--from {start}")
            settle_padding(model, tokenizer=tokenizer, start=start, display=display)
        _check_length(model, tokenizer, wanted=options.max_length)
        return cls(model, tokenizer, train, dev)

    def digest(self) -> str:
        """Digests the examples."""
        from sortyard.data.examples import digest_of

        return digest_of(self.train, self.dev)

    def encode(self, *, max_length: int, display: Display) -> "EncodedExamples":
        """Tokenizes the training examples, and tells how many examples of either split are cut."""
        from sortyard.data.encoding import encode_examples, reads_token_types

        types = reads_token_types(self.model.config, tokenizer=self.tokenizer)
        train, dev = (
            encode_examples(split, tokenizer=self.tokenizer, max_length=max_length, token_type_ids=types)
            for split in (self.train, self.dev)
        )
        if train.num_truncated or dev.num_truncated:
            display.say(
                f"cut       {train.num_truncated:,} of {len(train):,} training and {dev.num_truncated:,} of "
                f"{len(dev):,} development examples, to {max_length} tokens; finetune.task.max_length=N reads more"
            )
        return train


def _from_scratch(
    recipe: Recipe, *, train: "Examples", saved: Path | None, display: Display
) -> tuple[Any, "PreTrainedTokenizerFast"]:
    """Builds the recipe's model, with a tokenizer trained on the training examples' own texts."""
    from sortyard.data.vocabulary import Vocabulary
    from sortyard.model.factory import build_model
    from sortyard.tokenizer.train import load_tokenizer, train_tokenizer

    if saved is not None and (saved / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(saved)
    elif recipe.tokenizer.path is not None:
        tokenizer = load_tokenizer(recipe.tokenizer.path)
    else:
        tokenizer = train_tokenizer([*train.texts, *(train.pairs or ())], recipe.tokenizer, say=display.say)
    vocabulary = Vocabulary.of(tokenizer)
    model = build_model(
        recipe.model,
        head="sequence_classification",
        vocab_size=vocabulary.size,
        tokenizer_ids=vocabulary.model_ids(),
        seed=recipe.seed,
        **head_settings(train.task),
    )
    return model, tokenizer


def _check_length(model: Any, tokenizer: Any, *, wanted: int) -> None:
    from sortyard.evaluation.batching import position_limit

    limits = [position_limit(model, tokenizer=tokenizer), getattr(model.config, "max_position_embeddings", None)]
    limit = min((value for value in limits if value is not None), default=wanted)
    if wanted > limit:
        raise InputError(
            f"finetune.task.max_length: {wanted} is more than the {limit} positions of the model; "
            f"set finetune.task.max_length={limit}"
        )


def _finetune(run: RunFolder, *, recipe: Recipe, material: _Material, display: Display) -> dict[str, Any]:
    from sortyard.data.batches import ClassificationSource
    from sortyard.evaluation.baselines import kept_baselines
    from sortyard.evaluation.classification import evaluate_examples
    from sortyard.training.loop import train

    section, task = finetune_section(recipe), material.dev.task
    loop, headline = section.loop, task.metrics[0]
    model, tokenizer, limit = material.model, material.tokenizer, section.task.max_length
    score = partial(evaluate_examples, tokenizer=tokenizer, examples=material.dev, max_length=limit)
    encoded = material.encode(max_length=limit, display=display)
    baselines = kept_baselines(run.path / "baselines.json", train=material.train, dev=material.dev, seed=recipe.seed)
    for baseline in baselines:
        display.say(f"baseline  {baseline.name}: {headline} {baseline.metrics[headline]:.3f}")
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    save_tokenizer(tokenizer, folder=run.model, positions=positions)
    result = train(
        model,
        source=ClassificationSource(
            encoded,
            pad_id=tokenizer.pad_token_id,
            micro_batch_size=loop.micro_batch_size,
            accumulation_steps=loop.accumulation_steps,
            seed=recipe.seed,
        ),
        objective=_objective(model),
        loop=loop,
        optimizer=section.optimizer,
        schedule=section.schedule,
        run=run,
        seed=recipe.seed,
        evaluate=lambda current: score(current).metrics,
        best_metric=headline,
        progress=display.progress("finetune"),
        flops=token_flops(model, lengths=encoded.lengths, target_share=len(encoded) / int(encoded.lengths.sum())),
    )
    final = score(model, baselines=baselines)
    final.write(run.eval, name=task.name)
    write_documents(run, model=model, tokenizer=tokenizer, texts=material.dev.texts, display=display)
    return {
        "run": run.path,
        "model": run.model,
        **outcome(final),
        "steps": result.state.step,
        "reason": result.state.finished,
    }


def outcome(result: "EvaluationResult") -> dict[str, Any]:
    """Returns a task's scores as JSON values, the baselines' beside them."""
    return {
        "task": result.task,
        "examples": result.num_examples,
        "classes": list(result.label_names),
        "metric": result.main_metric,
        "score": result.main_score,
        "interval": [result.interval.low, result.interval.high],
        "metrics": result.metrics,
        "baselines": {baseline.name: baseline.metrics for baseline in result.baselines},
    }


def _objective(model: Any) -> Any:
    from sortyard.objectives.classification import ClassificationObjective, LogitsObjective

    return ClassificationObjective() if model.config.model_type == "sortyard" else LogitsObjective()
