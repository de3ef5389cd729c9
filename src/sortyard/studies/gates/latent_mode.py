"""The latent-mode task: documents with a hidden mode that says what each word means.

A document has one of 8 modes. A token is one of 32 words, whose label is pi_mode(word), one of 8 classes; or, one in
ten, a marker that names the mode and has no label. So a token's label cannot be told without the document. The maps
pi are drawn by the seed; training never sees a document twice.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sortyard.data.collate import Batch
from sortyard.data.masking import IGNORED
from sortyard.model.options import ModelOptions
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.studies.gates.arms import Trainee
from sortyard.studies.gates.tasks import Json, Material
from sortyard.studies.gates.watching import watch_experts

NAME = "latent-mode"
MODES, WORDS, CLASSES = 8, 32, 8
MARKER_SHARE = 0.1
LENGTH, BATCH_SIZE = 48, 16
HELD_OUT_BATCHES, HELD_OUT_BATCH_SIZE = 16, 64
_FIRST_WORD = 1  # 0 is padding
_FIRST_MARKER = _FIRST_WORD + WORDS
_MEANING, _TRAINING, _HELD_OUT = 0, 1, 2  # streams of random numbers

HIDDEN_SIZE, NUM_HEADS, LR = 32, 4, 3e-3

TRAINEE = Trainee(
    head="token_classification",
    options=ModelOptions(
        hidden_size=HIDDEN_SIZE, num_hidden_layers=1, num_attention_heads=NUM_HEADS, attention="dense",
        position_embedding_type="none", gated_ffn=False, num_experts=8, num_experts_per_tok=2, num_expert_groups=1,
        num_groups_per_tok=1, moe_intermediate_size=64, balance="switch", balance_coef=0.01,
        max_position_embeddings=LENGTH,
    ),
    vocab_size=_FIRST_MARKER + MODES,
    lr=LR,
    batch_size=BATCH_SIZE,
    length=LENGTH,
    predictions=BATCH_SIZE * LENGTH,
    fields={"num_labels": CLASSES},
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class LatentModes:
    """One seed's modes.

    Attributes:
        seed: The seed.
        meaning: [modes, words] the class of each word in each mode.
    """

    seed: int
    meaning: NDArray[np.int64]

    @classmethod
    def of(cls, seed: int) -> "LatentModes":
        """Draw the maps of a seed."""
        return cls(seed, np.random.default_rng((seed, _MEANING)).integers(CLASSES, size=(MODES, WORDS)))

    def training_batch(self, step: int) -> list[Batch]:
        """Return the one micro-batch of a step."""
        return [self._draw(BATCH_SIZE, stream=_TRAINING, number=step)[0]]

    def held_out(self, number: int) -> tuple[Batch, Tensor]:
        """Return a batch of documents that training does not see, and their modes [B]."""
        return self._draw(HELD_OUT_BATCH_SIZE, stream=_HELD_OUT, number=number)

    def ceiling_without_context(self) -> float:
        """The best accuracy of who knows the maps but not the mode: each word's most frequent class over modes."""
        counts = np.stack([(self.meaning == label).sum(axis=0) for label in range(CLASSES)])  # [classes, words]
        return float(counts.max(axis=0).mean() / MODES)

    def _draw(self, count: int, *, stream: int, number: int) -> tuple[Batch, Tensor]:
        generator = np.random.default_rng((self.seed, stream, number))
        modes = generator.integers(MODES, size=(count, 1))
        words = generator.integers(WORDS, size=(count, LENGTH))
        is_marker = generator.random((count, LENGTH)) < MARKER_SHARE
        ids = np.where(is_marker, _FIRST_MARKER + modes, _FIRST_WORD + words)
        labels = np.where(is_marker, IGNORED, self.meaning[modes, words])
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.ones(count, LENGTH, dtype=torch.long),
            "labels": torch.from_numpy(labels),
        }
        return batch, torch.from_numpy(modes[:, 0])


def learner(*, num_heads: int, lr: float) -> Trainee:
    """Change what decides how soon attention brings the mode to a token by itself, without the gate.

    Args:
        num_heads: Attention heads; must divide `HIDDEN_SIZE`.
        lr: Highest learning rate.

    Returns:
        The model and its training, else as in `TRAINEE`.
    """
    options = TRAINEE.options.model_copy(update={"num_attention_heads": num_heads})
    return replace(TRAINEE, options=options, lr=lr)


class LatentModeTask:
    """The task for the study.

    Args:
        trainee: The context arm's model and its training.
    """

    name = NAME
    data = "drawn"
    objective = MaskedLMObjective()
    evaluation_steps = HELD_OUT_BATCHES * HELD_OUT_BATCH_SIZE / BATCH_SIZE / 3

    def __init__(self, trainee: Trainee = TRAINEE) -> None:
        self.trainee = trainee

    def material(self, seed: int) -> Material:
        """Return a seed's batches and evaluation."""
        modes = LatentModes.of(seed)
        return Material(step=modes.training_batch, evaluate=lambda model: score_tokens(model, modes))


@torch.inference_mode()
def score_tokens(model: torch.nn.Module, modes: LatentModes) -> Json:
    """Score a token classifier on held-out documents.

    Args:
        model: The model.
        modes: The seed's modes.

    Returns:
        "score", the accuracy over words; the ceiling without context; and how experts follow the mode.
    """
    correct = count = 0
    with watch_experts(model, num_kinds=MODES) as watch:
        for number in range(HELD_OUT_BATCHES):
            batch, kinds = modes.held_out(number)
            watch.expect(kinds)
            labels = batch.pop("labels")
            is_word = labels != IGNORED
            correct += int((model(**batch).logits.argmax(-1) == labels)[is_word].sum())
            count += int(is_word.sum())
        return {
            "score": correct / count,
            "ceiling_without_context": modes.ceiling_without_context(),
            **watch.summary(),
        }


def settings(trainee: Trainee = TRAINEE) -> Json:
    """What the task fixes, as JSON values."""
    return {
        "options": trainee.options.model_dump(), "lr": trainee.lr, "length": LENGTH, "batch_size": BATCH_SIZE,
        "modes": MODES, "words": WORDS, "classes": CLASSES, "marker_share": MARKER_SHARE,
        "held_out": HELD_OUT_BATCHES * HELD_OUT_BATCH_SIZE,
    }  # fmt: skip
