"""The five task heads."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.processing_utils import Unpack
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from sortyard._registration import register_models
from sortyard.model.configuration import SortyardConfig
from sortyard.model.losses import IGNORED, TargetLoss, cross_entropy, sequence_loss
from sortyard.model.modeling import SortyardModel, SortyardPreTrainedModel
from sortyard.model.outputs import SortyardHeadOutput, SortyardModelOutput, SortyardQuestionAnsweringOutput
from sortyard.model.prediction_head import PredictionHead, classifier_head, token_head


def _encode(
    model: SortyardModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    inputs_embeds: Tensor | None,
    *,
    has_labels: bool,
    **kwargs: Any,
) -> tuple[SortyardModelOutput, Tensor]:
    """Run the encoder, for its output and states; a loss needs its balance part in evaluation mode too."""
    if has_labels:
        kwargs.setdefault("output_statistics", True)
    kwargs["return_dict"] = True  # whatever the configuration says: the head's caller gets a tuple then, not the head
    outputs: SortyardModelOutput = model(input_ids, attention_mask, inputs_embeds=inputs_embeds, **kwargs)
    assert outputs.last_hidden_state is not None
    return outputs, outputs.last_hidden_state


def _head_output(
    outputs: SortyardModelOutput, logits: Tensor, loss: TargetLoss | None, num_items_in_batch: int | Tensor | None
) -> SortyardHeadOutput:
    total, task, balance = (
        (None, None, outputs.aux_loss) if loss is None else loss.weighted(outputs.aux_loss, num_items_in_batch)
    )
    return SortyardHeadOutput(loss=total, logits=logits, task_loss=task, aux_loss=balance, **_reports(outputs))


def _reports(outputs: SortyardModelOutput) -> dict[str, Any]:
    names = ("hidden_states", "attentions", "router_logits", "expert_loads", "sparsity")
    return {name: outputs.get(name) for name in names}


class _LanguageModel(SortyardPreTrainedModel):
    """A head over the vocabulary whose projection is the transposed word embedding."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}  # noqa: RUF012
    _tp_plan = {"decoder": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: SortyardConfig) -> None:
        super().__init__(config)
        self.model = SortyardModel(config)
        width = config.embedding_size or config.hidden_size
        self.head = PredictionHead(config, width=width, activation=config.head_activation or config.hidden_act)
        self.decoder = nn.Linear(width, config.vocab_size, bias=True)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the projection onto the vocabulary."""
        self.decoder = new_embeddings

    def score(self, hidden: Float[Tensor, "... W"], labels: Int[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        """Project onto the vocabulary, and add up the losses; processes that share the vocabulary replace this.

        Args:
            hidden: what the projection reads.
            labels: the id at each place, -100 where there is no target.

        Returns:
            Logits [..., V] (of this process's ids) and the sum of the losses.
        """
        logits = self.decoder(hidden)
        return logits, cross_entropy(logits.flatten(0, -2), labels.flatten()).total


class SortyardForMaskedLM(_LanguageModel):
    """Predicts masked tokens."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "B T W"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SortyardHeadOutput:
        """Score the vocabulary at every token, or at the targets only.

        Args:
            input_ids: token ids, some of them masked.
            attention_mask: 1 at real tokens, 0 at pads.
            inputs_embeds: word embeddings instead of ids.
            labels: original ids at the targets, -100 elsewhere.
            num_items_in_batch: targets of the whole optimizer step, if this batch is only a part of it.
            **kwargs: as in `SortyardModel.forward`.

        Returns:
            Loss and logits; with labels and `config.sparse_prediction` the logits of the targets only [N, V].
        """
        outputs, hidden = _encode(
            self.model, input_ids, attention_mask, inputs_embeds, has_labels=labels is not None, **kwargs
        )
        if labels is None:
            return _head_output(outputs, self.decoder(self.head(hidden)), None, None)
        labels = labels.to(hidden.device)
        if self.config.sparse_prediction:
            targets = labels != IGNORED
            hidden, labels = hidden[targets], labels[targets]
        logits, total = self.score(self.head(hidden), labels)
        return _head_output(outputs, logits, TargetLoss(total, (labels != IGNORED).sum()), num_items_in_batch)


class SortyardForCausalLM(_LanguageModel, GenerationMixin):
    """Predicts the next token; attention, buckets and the experts' context never look ahead."""

    def __init__(self, config: SortyardConfig) -> None:
        if not config.causal:  # the caller's stays as it is
            config = copy.deepcopy(config)
            config.causal = True
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "B T W"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        num_items_in_batch: int | Tensor | None = None,
        logits_to_keep: int = 0,
        shift_labels: Int[Tensor, "B T"] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SortyardHeadOutput:
        """Score the next token at every position.

        Args:
            input_ids: token ids.
            attention_mask: 1 at real tokens, 0 at pads.
            inputs_embeds: word embeddings instead of ids.
            labels: the token ids themselves, shifted here; -100 at pads and at the first token of a packed document.
            num_items_in_batch: targets of the whole optimizer step, if this batch is only a part of it.
            logits_to_keep: score only that many last positions; 0 = all.
            shift_labels: the next token of every position, where the caller has shifted; then `labels` are not read.
            **kwargs: as in `SortyardModel.forward`.

        Returns:
            Loss and logits [B, T, V].
        """
        has_labels = labels is not None or shift_labels is not None
        outputs, hidden = _encode(self.model, input_ids, attention_mask, inputs_embeds, has_labels=has_labels, **kwargs)
        hidden = self.head(hidden[:, -logits_to_keep:])
        if labels is not None and shift_labels is None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        if shift_labels is None:
            return _head_output(outputs, self.decoder(hidden), None, None)
        shift_labels = shift_labels[:, -logits_to_keep:]
        logits, total = self.score(hidden, shift_labels)
        return _head_output(outputs, logits, TargetLoss(total, (shift_labels != IGNORED).sum()), num_items_in_batch)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        global_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Generation recomputes the whole prefix: a bucketed prefix has no key cache yet.

        Args:
            input_ids: the prompt and what was generated so far.
            attention_mask: 1 at real tokens, 0 at pads.
            position_ids: as in `SortyardModel.forward`; transformers counts on, and repeats the last token type.
            token_type_ids: token types.
            global_tokens: those of the prompt; no generated token is one.
            **kwargs: generation's own; what the model reports on request is asked for.

        Returns:
            The arguments of the next call.

        Raises:
            ValueError: for packed prompts, whose sequences cannot grow.
        """
        if kwargs.get("cu_seq_lens_q") is not None or kwargs.get("seq_idx") is not None:
            raise ValueError("generation takes one prompt a row, not packed ones; leave cu_seq_lens_q and seq_idx out")
        if global_tokens is not None:
            global_tokens = F.pad(global_tokens, (0, input_ids.shape[1] - global_tokens.shape[1]))
        reports = ("logits_to_keep", "output_attentions", "output_hidden_states", "output_router_logits")
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "token_type_ids": token_type_ids,
            "global_tokens": global_tokens,
            **{name: kwargs[name] for name in reports if name in kwargs},
        }


class SortyardForSequenceClassification(SortyardPreTrainedModel):
    """Classifies or rates a whole sequence."""

    def __init__(self, config: SortyardConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SortyardModel(config)
        self.head = classifier_head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "B T W"] | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SortyardHeadOutput:
        """Score each sequence (one sequence a row; rows are not packed).

        Args:
            input_ids: token ids.
            attention_mask: 1 at real tokens, 0 at pads.
            inputs_embeds: word embeddings instead of ids.
            labels: class numbers [B], or targets as `config.problem_type` says.
            num_items_in_batch: targets of the whole optimizer step, if this batch is only a part of it: sequences, or
                with several targets each all of those.
            **kwargs: as in `SortyardModel.forward`.

        Returns:
            Loss and logits [B, num_labels].
        """
        outputs, hidden = _encode(
            self.model, input_ids, attention_mask, inputs_embeds, has_labels=labels is not None, **kwargs
        )
        pooled = self.head(_pool(hidden, attention_mask, self.config))
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else sequence_loss(logits, labels, self._problem_type(labels))
        return _head_output(outputs, logits, loss, num_items_in_batch)

    def _problem_type(self, labels: Tensor) -> str:
        if self.config.problem_type is not None:
            return str(self.config.problem_type)
        if self.num_labels == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


class SortyardForTokenClassification(SortyardPreTrainedModel):
    """Labels every token."""

    def __init__(self, config: SortyardConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SortyardModel(config)
        self.head = token_head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "B T W"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SortyardHeadOutput:
        """Score each token.

        Args:
            input_ids: token ids.
            attention_mask: 1 at real tokens, 0 at pads.
            inputs_embeds: word embeddings instead of ids.
            labels: class of each token, -100 where there is none.
            num_items_in_batch: targets of the whole optimizer step, if this batch is only a part of it.
            **kwargs: as in `SortyardModel.forward`.

        Returns:
            Loss and logits [B, T, num_labels].
        """
        outputs, hidden = _encode(
            self.model, input_ids, attention_mask, inputs_embeds, has_labels=labels is not None, **kwargs
        )
        logits = self.classifier(self.dropout(self.head(hidden)))
        loss = None if labels is None else cross_entropy(logits.flatten(0, 1), labels.flatten())
        return _head_output(outputs, logits, loss, num_items_in_batch)


class SortyardForQuestionAnswering(SortyardPreTrainedModel):
    """Finds the span of a text that answers a question."""

    def __init__(self, config: SortyardConfig) -> None:
        super().__init__(config)
        self.model = SortyardModel(config)
        self.head = token_head(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "B T W"] | None = None,
        start_positions: Int[Tensor, " B"] | None = None,
        end_positions: Int[Tensor, " B"] | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SortyardQuestionAnsweringOutput:
        """Score each token as the first and as the last of the answer.

        Args:
            input_ids: token ids.
            attention_mask: 1 at real tokens, 0 at pads.
            inputs_embeds: word embeddings instead of ids.
            start_positions: index of the answer's first token; outside the row = no target.
            end_positions: index of its last token.
            num_items_in_batch: targets of the whole optimizer step, if this batch is only a part of it.
            **kwargs: as in `SortyardModel.forward`.

        Returns:
            Loss (mean of start and end) and two logits [B, T].
        """
        outputs, hidden = _encode(
            self.model, input_ids, attention_mask, inputs_embeds, has_labels=start_positions is not None, **kwargs
        )
        start, end = self.qa_outputs(self.head(hidden)).unbind(dim=-1)
        total, task, balance = None, None, outputs.aux_loss
        if start_positions is not None and end_positions is not None:
            losses = [
                cross_entropy(logits, _inside(positions, logits.shape[1]))
                for logits, positions in ((start, start_positions), (end, end_positions))
            ]
            if num_items_in_batch is None:  # a mean for each end: one may lie outside of a row and the other not
                one = torch.ones_like(losses[0].num_targets)
                losses = [TargetLoss(each.total / each.num_targets.clamp_min(1), one) for each in losses]
            both = TargetLoss((losses[0].total + losses[1].total) / 2, losses[0].num_targets)
            total, task, balance = both.weighted(outputs.aux_loss, num_items_in_batch)
        return SortyardQuestionAnsweringOutput(
            loss=total, start_logits=start, end_logits=end, task_loss=task, aux_loss=balance, **_reports(outputs)
        )


def _inside(positions: Tensor, length: int) -> Tensor:
    flat = positions.flatten()
    return torch.where((flat >= 0) & (flat < length), flat, IGNORED)


def _pool(
    hidden: Float[Tensor, "B T D"], attention_mask: Tensor | None, config: SortyardConfig
) -> Float[Tensor, "B D"]:
    """What stands for a whole row: its first real token, of a causal model its last one, or the mean."""
    real = torch.ones_like(hidden[..., 0], dtype=torch.float32)
    if attention_mask is not None:
        real = attention_mask.to(real)
    if config.classifier_pooling == "cls":  # rows may be padded on either side
        place = hidden.shape[1] - 1 - real.flip(1).argmax(dim=1) if config.causal else real.argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), place]
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    real = real.to(wide.dtype)
    return ((wide * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp_min(1)).to(hidden.dtype)


register_models()
