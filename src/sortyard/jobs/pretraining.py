"""Phase 1: from text to a pretrained model, in a run folder."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.errors import InputError
from sortyard.jobs.arithmetic import token_flops
from sortyard.jobs.display import Display
from sortyard.jobs.finishing import write_documents
from sortyard.jobs.folders import (
    Job,
    check_free,
    create_run,
    discarded_if_untrained,
    next_folder,
    open_job,
    write_job,
)
from sortyard.jobs.held_out import HeldOut
from sortyard.jobs.paths import absolute, fingerprint
from sortyard.jobs.processes import (
    as_first_says,
    check_layout,
    first_then_others,
    go_on_in_processes,
    is_first,
    meet,
    must_start_others,
)
from sortyard.jobs.sections import pretrain_section
from sortyard.jobs.sparse_share import sequence_lengths
from sortyard.recipe import LoadedRecipe, PretrainSection, Recipe, resolved_yaml
from sortyard.runs.folder import RunFolder
from sortyard.runs.lock import run_lock
from sortyard.runs.trackers import check_trackers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from sortyard.data.batches import BatchSource
    from sortyard.data.packing import PackedRows
    from sortyard.data.vocabulary import Vocabulary
    from sortyard.jobs.corpora import Corpus

DECODED_ROWS = 40


def start_pretraining(loaded: LoadedRecipe, *, out: Path | None, display: Display) -> dict[str, Any]:
    """Pretrains a model in a new run folder.

    Args:
        loaded: The recipe.
        out: The run's folder; None takes the next free `runs/NAME-0001`.
        display: Told what is being done.

    Returns:
        JSON values: the folder, steps, tokens, seconds and held-out figures.

    Raises:
        InputError: The data, the recipe or the folder cannot be used; then no folder is left behind, unless a part of
            the text was prepared.
    """
    from sortyard.jobs.corpora import check_corpus, existing_tokenizer

    recipe = absolute(loaded.recipe)
    section = pretrain_section(recipe)
    check_layout(recipe)
    _check_restartable(out)
    meet(recipe, section.loop)

    def create() -> RunFolder:
        path = out if out is not None else next_folder(recipe.name)
        if out is not None and _was_made_by_this_launch(out, recipe=recipe):
            return RunFolder.open(out)
        check_free(path)
        check_trackers(section.loop.trackers)
        check_corpus(section.data)
        _check_masks(section, tokenizer=existing_tokenizer(section.data, tokenizer=recipe.tokenizer))
        return create_run(
            path,
            loaded=loaded,
            recipe=recipe,
            job=Job("pretrain", launch=_launch()),
            device=section.loop.device,
            fingerprint=fingerprint([section.data.path]),
        )

    run = RunFolder.open(Path(as_first_says(lambda: str(create().path))))
    count = must_start_others(recipe, section.loop)
    if count:
        display.say(f"{run.path}: {count} processes")
        with run_lock(run.path), discarded_if_untrained(run):
            go_on_in_processes(run.path, recipe=recipe, count=count, display=display)
        return finished_run(run)
    if not is_first():
        return run_pretraining(run, recipe=recipe, display=display)
    with run_lock(run.path), discarded_if_untrained(run):
        return run_pretraining(run, recipe=recipe, display=display)


def _check_masks(section: PretrainSection, *, tokenizer: Path | None) -> None:
    """Refuses a tokenizer that cannot do what the objective needs, before hours of preparing text with it."""
    if tokenizer is None:
        return
    from sortyard.data.vocabulary import Vocabulary
    from sortyard.tokenizer.train import load_tokenizer

    if Vocabulary.of(load_tokenizer(tokenizer)).mask_id is None and section.objective == "masked_lm":
        raise InputError(
            f"tokenizer.path: {tokenizer} has no mask token, which masked_lm needs; choose another, or set "
            "pretrain.objective to causal_lm"
        )


def _launch() -> str | None:
    """torchrun's id of the launch that this process belongs to; None where there is none that is its own."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


def _was_made_by_this_launch(path: Path, *, recipe: Recipe) -> bool:
    """Whether torchrun started this process again, after another was lost, with a run that there is already.

    On several machines it counts its starts on each by itself, so that the count alone does not tell. It also starts
    again after a folder was refused, which is the run of another recipe then.
    """
    if not (path / "job.json").is_file() or RunFolder.open(path).resolved.read_text("utf-8") != resolved_yaml(recipe):
        return False
    is_again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return is_again or (_launch() is not None and open_job(RunFolder.open(path))[0].launch == _launch())


def _check_restartable(out: Path | None) -> None:
    if out is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise InputError("torchrun --max-restarts needs a folder that is the same at every start: name one by --out")


def run_pretraining(run: RunFolder, *, recipe: Recipe, display: Display) -> dict[str, Any]:
    """Does whatever is still to be done in a run: tokenizer, shards, training, documents.

    Args:
        run: A run that `create_run` made, at any stage.
        recipe: Its resolved recipe.
        display: Told what is being done.
    """
    from sortyard.model.factory import build_model
    from sortyard.training.loop import train

    section = pretrain_section(recipe)
    corpus = first_then_others(lambda: _own_corpus(run, recipe=recipe, display=display))
    model = build_model(
        recipe.model,
        head=section.objective,
        vocab_size=corpus.vocabulary.size,
        tokenizer_ids=corpus.vocabulary.model_ids(),
        seed=recipe.seed,
    )
    held_out = HeldOut(
        corpus.held_out,
        section=section,
        vocabulary=corpus.vocabulary,
        seed=recipe.seed,
        most=section.held_out_rows,
    )
    if is_first():
        save_tokenizer(corpus.tokenizer, folder=run.model, positions=recipe.model.max_position_embeddings)
    result = train(
        model,
        source=_source(corpus.rows, section=section, vocabulary=corpus.vocabulary, seed=recipe.seed),
        objective=_objective(section),
        loop=section.loop,
        optimizer=section.optimizer,
        schedule=section.schedule,
        run=run,
        seed=recipe.seed,
        evaluate=held_out if corpus.held_out is not None else None,
        best_metric="loss",
        progress=display.progress("pretrain"),
        parallel=recipe.parallel,
        flops=token_flops(model, lengths=sequence_lengths(corpus.rows), target_share=target_share(section)),
    )
    if is_first():
        texts = decoded_rows(corpus)
        write_documents(run, model=model, tokenizer=corpus.tokenizer, texts=texts, display=display)
    return {
        "run": run.path,
        "model": run.model,
        "steps": result.state.step,
        "reason": result.state.finished,
        "tokens": result.state.tokens,
        "seconds": round(result.state.seconds, 3),
        "evaluation": last_evaluation(run),
    }


def _own_corpus(run: RunFolder, *, recipe: Recipe, display: Display) -> "Corpus":
    """Prepares a run's text, or finds what is prepared already.

    Raises:
        InputError: It cannot be read, or its tokens are not those that the run was begun with.
    """
    from sortyard.jobs.corpora import prepare_corpus

    data, folder = pretrain_section(recipe).data, run.path / "data"
    corpus = prepare_corpus(data, tokenizer=recipe.tokenizer, folder=folder, seed=recipe.seed, display=display)
    job, _ = open_job(run)
    if job.examples not in (None, corpus.digest):
        raise InputError(
            f"{data.path}: its tokens are not those that {run.path} was begun with; put the text back as it was, or go "
            "on with this one by --allow pretrain.data.path"
        )
    if job.examples is None and is_first():
        write_job(run, replace(job, examples=corpus.digest))
    return corpus


def finished_run(run: RunFolder) -> dict[str, Any]:
    """What `run_pretraining` returned in the process that finished a run, from the run's records."""
    finish = [record for record in run.read_events() if record.get("event") == "finish"][-1]
    last = run.read_metrics("train")[-1]
    return {
        "run": run.path,
        "model": run.model,
        "steps": finish["step"],
        "reason": finish["reason"],
        "tokens": last["tokens"],
        "seconds": round(last["seconds"], 3),
        "evaluation": last_evaluation(run),
    }


def decoded_rows(corpus: "Corpus") -> list[str]:
    """Returns the first pieces of the first held-out rows (of the training rows where none are held out) as text."""
    rows = corpus.held_out if corpus.held_out is not None else corpus.rows
    texts = []
    for index in range(min(len(rows), DECODED_ROWS)):
        ids, boundaries = rows.row(index)
        texts.append(corpus.tokenizer.decode(ids[: boundaries[1]].tolist(), skip_special_tokens=True))
    return texts


def last_evaluation(run: RunFolder) -> dict[str, Any]:
    """Returns the figures of a run's last evaluation, or nothing where there was none."""
    records = run.read_metrics("eval")
    return {key: value for key, value in records[-1].items() if key not in ("kind", "step")} if records else {}


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", *, folder: Path, positions: int) -> None:
    """Writes a tokenizer beside a model, announcing no longer sequences than the model has positions for."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    tokenizer.save_pretrained(str(folder))


def _source(rows: "PackedRows", *, section: PretrainSection, vocabulary: "Vocabulary", seed: int) -> "BatchSource":
    from sortyard.data.batches import CausalLMSource, MaskedLMSource

    loop = section.loop
    sizes = {"micro_batch_size": loop.micro_batch_size, "accumulation_steps": loop.accumulation_steps}
    if section.objective == "causal_lm":
        return CausalLMSource(rows, vocabulary=vocabulary, seed=seed, **sizes)
    return MaskedLMSource(rows, vocabulary=vocabulary, masking=section.masking, seed=seed, **sizes)


def target_share(section: PretrainSection) -> float:
    """Returns the share of the tokens that are predicted."""
    return section.masking.probability if section.objective == "masked_lm" else 1.0


def _objective(section: PretrainSection) -> Any:
    from sortyard.objectives.causal_lm import CausalLMObjective
    from sortyard.objectives.masked_lm import MaskedLMObjective

    return CausalLMObjective() if section.objective == "causal_lm" else MaskedLMObjective()
