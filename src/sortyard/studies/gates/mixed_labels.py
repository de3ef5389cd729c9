"""The mixed-labels task: one classifier for several labelled data sets at once, over the union of their classes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from sortyard.data.collate import Batch, collate_examples
from sortyard.data.encoding import EncodedExamples, encode_examples
from sortyard.data.examples import Examples
from sortyard.data.options import TaskOptions
from sortyard.data.order import global_samples
from sortyard.data.tasks import load_examples
from sortyard.errors import InputError
from sortyard.model.options import ModelOptions
from sortyard.objectives.classification import ClassificationObjective
from sortyard.studies.gates.arms import Trainee
from sortyard.studies.gates.sources import Say
from sortyard.studies.gates.tasks import Json, Material
from sortyard.studies.gates.watching import watch_experts
from sortyard.studies.given import digest_of
from sortyard.tokenizer.options import TokenizerOptions
from sortyard.tokenizer.train import train_tokenizer

NAME = "mixed-labels"
LENGTH, BATCH_SIZE = 64, 32
VOCAB_SIZE = 4096
MOST_TRAINING, MOST_HELD_OUT = 8000, 2000
DEV_FRACTION, SPLIT_SEED = 0.2, 0
LR = 1e-3
OPTIONS = ModelOptions(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, attention="dense", num_experts=8,
    num_experts_per_tok=2, num_expert_groups=1, num_groups_per_tok=1, moe_intermediate_size=64,
    max_position_embeddings=LENGTH, classifier_pooling="mean",
)  # fmt: skip


class MixedLabelsTask:
    """The task for the study.

    Args:
        names: The sources' names.
        splits: Training and held-out examples of each.
    """

    name = NAME
    objective = ClassificationObjective()

    def __init__(self, names: Sequence[str], splits: Sequence[tuple[Examples, Examples]]) -> None:
        self.names = tuple(names)
        classes = [len(training.task.label_names) for training, _ in splits]
        first = np.cumsum([0, *classes])[:-1].tolist()  # each source's classes come after those of the one before
        training = _joined([pair[0] for pair in splits], first)
        tokenizer = train_tokenizer(training.texts, TokenizerOptions(vocab_size=VOCAB_SIZE))
        self._training = encode_examples(training, tokenizer=tokenizer, max_length=LENGTH)
        held_out = _joined([pair[1] for pair in splits], first)
        order = np.random.default_rng(SPLIT_SEED).permutation(len(held_out))  # batches mix sources as in training
        self._held_out = encode_examples(held_out.take(order), tokenizer=tokenizer, max_length=LENGTH)
        sources = np.repeat(np.arange(len(splits)), [len(pair[1]) for pair in splits])
        self._held_out_sources = torch.from_numpy(sources[order])
        self.data = digest_of(np.array(self.names), sources, *_arrays(self._training), *_arrays(self._held_out))
        self.trainee = Trainee(
            head="sequence_classification",
            options=OPTIONS,
            vocab_size=max(tokenizer.get_vocab().values()) + 1,
            lr=LR,
            batch_size=BATCH_SIZE,
            length=LENGTH,
            predictions=BATCH_SIZE,
            fields={"num_labels": sum(classes), "problem_type": "single_label_classification"},
        )
        self.evaluation_steps = len(held_out) / BATCH_SIZE / 3

    @classmethod
    def read(cls, sources: Sequence[tuple[str, str]], *, say: Say) -> "MixedLabelsTask":
        """Read the sources, name and path each; the path is of a table with the columns text and label.

        Raises:
            InputError: a source cannot be read.
        """
        splits = [_read(name, path, say=say) for name, path in sources]
        return cls([name for name, _ in sources], splits)

    def material(self, seed: int) -> Material:
        """Return a seed's batches: the order of examples; what is held out is always the same."""

        def step(number: int) -> list[Batch]:
            drawn = global_samples(number, batch_size=BATCH_SIZE, num_samples=len(self._training), seed=seed)
            return [_batch(self._training, np.array([sample for _, sample in drawn]))]

        return Material(step=step, evaluate=self.score)

    @torch.inference_mode()
    def score(self, model: torch.nn.Module) -> Json:
        """Score a classifier on the held-out examples.

        Args:
            model: The model.

        Returns:
            "score", the mean over sources of their accuracy; "by_source" each; and how experts follow the source.
        """
        num_sources = len(self.names)
        correct, counts = torch.zeros(num_sources), torch.zeros(num_sources)
        with watch_experts(model, num_kinds=num_sources) as watch:
            for first in range(0, len(self._held_out), BATCH_SIZE):
                kinds = self._held_out_sources[first : first + BATCH_SIZE]
                batch = _batch(self._held_out, np.arange(first, first + len(kinds)))
                watch.expect(kinds)
                labels = batch.pop("labels")
                correct.index_add_(0, kinds, (model(**batch).logits.argmax(-1) == labels).float())
                counts.index_add_(0, kinds, torch.ones(len(kinds)))
        shares = (correct / counts).tolist()
        return {
            "score": sum(shares) / num_sources,
            "by_source": dict(zip(self.names, shares, strict=True)),
            **watch.summary(),
        }


def settings() -> Json:
    """What the task fixes, as JSON values."""
    return {
        "options": OPTIONS.model_dump(), "vocab_size": VOCAB_SIZE, "lr": LR, "length": LENGTH,
        "batch_size": BATCH_SIZE, "most_training": MOST_TRAINING, "most_held_out": MOST_HELD_OUT,
    }  # fmt: skip


def _read(name: str, path: str, *, say: Say) -> tuple[Examples, Examples]:
    options = TaskOptions(data=path, dev_fraction=DEV_FRACTION, split_seed=SPLIT_SEED, max_train_examples=MOST_TRAINING)
    try:
        training, held_out = load_examples(options, "train"), load_examples(options, "dev")
    except InputError as error:
        raise InputError(f"--labels {name}={path}: {error}") from error
    seen = set(training.texts)  # a text that occurs twice would be trained on and held out
    order = np.random.default_rng(SPLIT_SEED).permutation(len(held_out))
    unseen = [index for index in order if held_out.texts[index] not in seen][:MOST_HELD_OUT]
    if not unseen:
        raise InputError(f"--labels {name}={path}: all that would be held out is in the training examples, too")
    classes = len(training.task.label_names)
    say(f"{name}: {len(training):,} examples to train on, {len(unseen):,} held out, {classes} classes")
    if training.skipped.total:
        say(f"{name}: skipped {training.skipped.describe()}")
    return training, held_out.take(np.array(unseen))


def _arrays(examples: EncodedExamples) -> tuple[NDArray[np.generic], ...]:
    assert examples.labels is not None
    return examples.ids, examples.offsets, examples.labels


def _joined(parts: Sequence[Examples], first: Sequence[int]) -> Examples:
    labels = np.concatenate([np.asarray(part.labels) + start for part, start in zip(parts, first, strict=True)])
    return replace(
        parts[0],
        texts=[text for part in parts for text in part.texts],
        labels=labels.astype(np.int64),
        places=[place for part in parts for place in part.places],
    )


def _batch(examples: EncodedExamples, chosen: NDArray[np.int64]) -> Batch:
    return collate_examples(examples, chosen, pad_id=0)
