"""What the model and its heads return, besides transformers' own fields."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class SortyardModelOutput(ModelOutput):
    """Output of the encoder.

    Args:
        last_hidden_state: token states [B, T, D]; what stands at pads has no meaning.
        hidden_states: states before each block and after the last one, if asked for.
        attentions: token-to-token weights [B, H, T, T] of each layer, if asked for. In a bucket layer a summary's
            weight is spread evenly over the keys of its branch, so weights times values is the layer's output.
        router_logits: gate scores [B * T, E] of each expert layer, if asked for.
        aux_loss: balance loss, mean over expert layers, already times `balance_coef`; None without experts.
        expert_loads: routed copies per expert [L, E], padding excluded, detached; None without experts.
        sparsity: share of the query-key pairs that the bucket layers do not compute (summaries count as keys).

    The last three come in training mode, with `output_router_logits` or with `output_statistics`.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None
    aux_loss: Tensor | None = None
    expert_loads: Tensor | None = None
    sparsity: float | None = None


@dataclass
class SortyardHeadOutput(ModelOutput):
    """Output of a head over the encoder.

    Args:
        loss: `task_loss` plus the balance loss by this batch's share of the step's targets.
        logits: scores; for masked LM with labels and `sparse_prediction`, of the target positions only [N, V].
        task_loss: sum over targets divided by `num_items_in_batch`, or by their number here.
        aux_loss, expert_loads, router_logits, hidden_states, attentions, sparsity: as in `SortyardModelOutput`;
            `aux_loss` is weighted by the same share. Without labels the last ones come as in `SortyardModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    task_loss: Tensor | None = None
    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None
    expert_loads: Tensor | None = None
    sparsity: float | None = None


@dataclass
class SortyardQuestionAnsweringOutput(ModelOutput):
    """Output of the extractive question-answering head; fields as in `SortyardHeadOutput`."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    task_loss: Tensor | None = None
    aux_loss: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None
    expert_loads: Tensor | None = None
    sparsity: float | None = None
