"""The mixed-text task: masked language modelling on several sources of text at once.

Every row is one passage of one document, and a batch mixes the sources, so that the mean of another sequence, which
the shuffled gate reads, is mostly of another source.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from sortyard.data.batches import MaskedLMSource, masked_lm_validation
from sortyard.data.masking import IGNORED
from sortyard.data.options import MaskingOptions
from sortyard.data.packing import PackedRows
from sortyard.model.options import ModelOptions
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.studies.gates.arms import Trainee
from sortyard.studies.gates.sources import VOCAB_SIZE, Corpora, Say, read_corpora
from sortyard.studies.gates.tasks import Json, Material
from sortyard.studies.gates.watching import watch_experts

NAME = "mixed-text"
LENGTH, BATCH_SIZE = 128, 16
SPLIT_SEED = HELD_OUT_MASK_SEED = 0
MASKING = MaskingOptions()
OPTIONS = ModelOptions(
    hidden_size=128, num_hidden_layers=2, num_attention_heads=4, attention="dense", num_experts=8,
    num_experts_per_tok=2, num_expert_groups=1, num_groups_per_tok=1, moe_intermediate_size=128,
    max_position_embeddings=LENGTH,
)  # fmt: skip
LR = 2e-3


class MixedTextTask:
    """The task for the study.

    Args:
        corpora: The sources' passages, of `LENGTH` tokens at most.
    """

    name = NAME
    objective = MaskedLMObjective()

    def __init__(self, corpora: Corpora) -> None:
        self.corpora = corpora
        self.data = corpora.digest()
        self.trainee = Trainee(
            head="masked_lm",
            options=OPTIONS,
            vocab_size=corpora.vocabulary.size,
            lr=LR,
            batch_size=BATCH_SIZE,
            length=LENGTH,
            predictions=round(MASKING.probability * BATCH_SIZE * LENGTH),
        )
        self.evaluation_steps = len(corpora.held_out.pieces) / BATCH_SIZE / 3

    @classmethod
    def read(cls, sources: Sequence[tuple[str, str]], *, say: Say) -> "MixedTextTask":
        """Read the sources, name and path each."""
        return cls(read_corpora(sources, length=LENGTH, seed=SPLIT_SEED, say=say))

    def material(self, seed: int) -> Material:
        """Return a seed's batches: the order of passages and their masks; what is held out is always the same."""
        rows = PackedRows(
            self.corpora.training, sequence_length=LENGTH, vocabulary=self.corpora.vocabulary, packing=False
        )
        source = MaskedLMSource(
            rows, vocabulary=self.corpora.vocabulary, masking=MASKING, micro_batch_size=BATCH_SIZE, seed=seed
        )
        return Material(step=source.step, evaluate=self.score)

    @torch.inference_mode()
    def score(self, model: torch.nn.Module) -> Json:
        """Score a masked language model on the held-out passages.

        Args:
            model: The model.

        Returns:
            "score", the mean loss in nats over all targets; "by_source" the same for each; and how experts follow the
            source.
        """
        num_sources = len(self.corpora.names)
        sums, counts = torch.zeros(num_sources, dtype=torch.float64), torch.zeros(num_sources, dtype=torch.float64)
        with watch_experts(model, num_kinds=num_sources) as watch:
            for number, batch in enumerate(self._held_out):
                kinds = self._held_out_sources[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
                watch.expect(kinds)
                losses, rows = _target_losses(model, batch)
                sums.index_add_(0, kinds[rows], losses)
                counts.index_add_(0, kinds[rows], torch.ones_like(losses))
        return {
            "score": float(sums.sum() / counts.sum()),
            "by_source": dict(zip(self.corpora.names, (sums / counts).tolist(), strict=True)),
            **watch.summary(),
        }

    @cached_property
    def _held_out(self) -> list[dict[str, Tensor]]:
        vocabulary = self.corpora.vocabulary
        rows = PackedRows(self.corpora.held_out, sequence_length=LENGTH, vocabulary=vocabulary, packing=False)
        return list(
            masked_lm_validation(
                rows, vocabulary=vocabulary, masking=MASKING, batch_size=BATCH_SIZE, seed=HELD_OUT_MASK_SEED
            )
        )

    @cached_property
    def _held_out_sources(self) -> Tensor:
        return torch.from_numpy(self.corpora.held_out.sources)


def settings() -> Json:
    """What the task fixes, as JSON values."""
    return {
        "options": OPTIONS.model_dump(), "vocab_size": VOCAB_SIZE, "lr": LR, "length": LENGTH,
        "batch_size": BATCH_SIZE, "masking": MASKING.model_dump(),
    }  # fmt: skip


def _target_losses(model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Each target's loss in float64, and the row [targets] it stands in."""
    labels = batch["labels"]
    is_target = labels != IGNORED
    logits = model(**batch).logits  # with labels, of the targets only [N, V]
    losses = F.cross_entropy(logits.float(), labels[is_target], reduction="none")
    return losses.double(), is_target.nonzero()[:, 0]
