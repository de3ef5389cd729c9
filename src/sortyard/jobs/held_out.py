"""A language model's scores on held-out text: a run's own rows, or any text read the same way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sortyard.errors import InputError
from sortyard.jobs.display import Display
from sortyard.jobs.loading import load_language_model
from sortyard.jobs.sections import pretrain_section
from sortyard.recipe import PretrainSection, Recipe
from sortyard.runs.folder import RunFolder

if TYPE_CHECKING:
    from sortyard.data.packing import PackedRows
    from sortyard.data.vocabulary import Vocabulary
    from sortyard.evaluation.perplexity import LanguageModelScore


@dataclass(frozen=True)
class HeldOut:
    """Scores a model on held-out rows; the same rows and masks every time.

    Attributes:
        rows: Those that are held out.
        section: The objective, masks and batches.
        vocabulary: Of the rows.
        seed: Of the masks.
        most: Rows to read at most, evenly spread; None reads all.
    """

    rows: "PackedRows | None"
    section: PretrainSection
    vocabulary: "Vocabulary"
    seed: int
    most: int | None = None

    def __call__(self, model: Any) -> dict[str, float]:
        """Returns loss, perplexity and accuracy."""
        from sortyard.evaluation.perplexity import evaluate_language_model

        causal = self.section.objective == "causal_lm"
        return _figures(evaluate_language_model(model, batches=self.batches(), causal=causal))

    def batches(self) -> Iterator[dict[str, Any]]:
        """Returns the rows in batches, with their targets."""
        from sortyard.data.batches import causal_lm_validation, masked_lm_validation
        from sortyard.parallel.mesh import num_processes

        assert self.rows is not None
        size = max(1, self.section.loop.micro_batch_size // num_processes())  # one of them measures, where all train
        if self.section.objective == "causal_lm":
            return causal_lm_validation(self.rows, vocabulary=self.vocabulary, batch_size=size, most=self.most)
        return masked_lm_validation(
            self.rows,
            vocabulary=self.vocabulary,
            masking=self.section.masking,
            batch_size=size,
            seed=self.seed,
            most=self.most,
        )


def held_out_scores(
    run: RunFolder, *, recipe: Recipe, data: str | None, batch_size: int, display: Display
) -> dict[str, float]:
    """Scores a finished run's model on held-out rows: its own, or all of another text.

    Raises:
        InputError: The run has no model or holds out no rows, or the text cannot be used.
    """
    scores = score_texts(run, recipe=recipe, texts=[data], batch_size=batch_size, display=display)
    return _figures(next(scores))


def score_texts(
    run: RunFolder,
    *,
    recipe: Recipe,
    texts: Sequence[str | None],
    batch_size: int,
    display: Display,
    text_column: str | None = None,
) -> "Iterator[LanguageModelScore]":
    """Scores a finished run's model on several texts, one after the other; each has the same masks every time.

    Args:
        run: Its folder.
        recipe: Its recipe.
        texts: Sources; None is the run's own held-out rows.
        batch_size: Rows in one forward pass.
        display: Told what is being done.
        text_column: Column of the texts; None takes the recipe's own.

    Raises:
        InputError: The run has no model or holds out no rows, or a text cannot be used.
    """
    from sortyard.evaluation.perplexity import evaluate_language_model

    section = pretrain_section(recipe)
    section = section.model_copy(update={"loop": section.loop.model_copy(update={"micro_batch_size": batch_size})})
    if text_column is not None:
        section = section.model_copy(update={"data": section.data.model_copy(update={"text_column": text_column})})
    recipe = recipe.model_copy(update={"pretrain": section})
    causal = section.objective == "causal_lm"
    model = load_language_model(run.model, causal=causal)
    for text in texts:
        with TemporaryDirectory(prefix="sortyard-") as aside:
            rows, vocabulary = _rows_to_score(run, recipe=recipe, data=text, aside=Path(aside), display=display)
            held_out = HeldOut(rows, section=section, vocabulary=vocabulary, seed=recipe.seed)
            yield evaluate_language_model(model, batches=held_out.batches(), causal=causal)


def _rows_to_score(
    run: RunFolder, *, recipe: Recipe, data: str | None, aside: Path, display: Display
) -> "tuple[PackedRows, Vocabulary]":
    from sortyard.jobs.corpora import other_text, prepare_corpus, prepare_for

    own, tokenizer = pretrain_section(recipe).data, recipe.tokenizer
    if data is None:
        corpus = prepare_corpus(own, tokenizer=tokenizer, folder=run.path / "data", seed=recipe.seed, display=display)
        if corpus.held_out is None:
            raise InputError(f"{run.path}: holds out no rows (validation_fraction is 0); give --data")
        return corpus.held_out, corpus.vocabulary
    corpus = prepare_for(run.model, other_text(own, data), folder=aside, seed=recipe.seed, display=display)
    return corpus.rows, corpus.vocabulary


def _figures(score: "LanguageModelScore") -> dict[str, float]:
    return {"loss": score.loss, "perplexity": score.perplexity, "accuracy": score.accuracy}
