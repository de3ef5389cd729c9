"""`upcycle`: the steps in order, from a dense checkpoint to a sparse model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sortyard.errors import InputError
from sortyard.evaluation.cost import parameter_counts
from sortyard.interop.upcycling.checkpoint import (
    DISCRIMINATOR,
    Checkpoint,
    given_checkpoint,
    load_checkpoint,
    load_tokenizer,
)
from sortyard.interop.upcycling.experts import centre_gates, expert_options
from sortyard.interop.upcycling.families import family_of
from sortyard.interop.upcycling.options import UpcyclingOptions, upcycling_options
from sortyard.interop.upcycling.placing import Placement, place_experts, translate
from sortyard.interop.upcycling.positions import extend_table, extended
from sortyard.interop.upcycling.report import UpcyclingReport
from sortyard.model.attention.options import AttentionOptions
from sortyard.model.configuration import SortyardConfig
from sortyard.model.factory import HEADS
from sortyard.model.modeling import SortyardModel, SortyardPreTrainedModel

_LABEL_FIELDS = ("id2label", "label2id", "problem_type")
_CLASSIFIERS = ("sequence_classification", "token_classification")


@dataclass(frozen=True)
class Upcycled:
    """A sparse model made of a dense one.

    Attributes:
        model: the sparse model, in evaluation mode.
        original: the dense model, as transformers has it.
        report: what became of every weight.
    """

    model: SortyardPreTrainedModel
    original: PreTrainedModel
    report: UpcyclingReport


def upcycle(source: str | Path | PreTrainedModel, **settings: Any) -> SortyardPreTrainedModel:
    """Turn a dense checkpoint into a sparse model.

    With experts from `shards`, `copies` and `shared` the result computes what the checkpoint did for sequences up to
    `dense_up_to` tokens (any length with `attention="dense"`), unless positions are stretched.

    Args:
        source: a checkpoint's folder, a hub name, or a transformers model (BERT and MiniLM, RoBERTa, XLM-RoBERTa,
            ELECTRA, DistilBERT, ModernBERT).
        **settings: fields of `UpcyclingOptions`: `num_experts`, `num_groups`, `experts_from`, `attention`,
            `bucket_size`, `max_position_embeddings`, `head` ...

    Returns:
        A `SortyardFor...` with the checkpoint's head (`SortyardModel` for a checkpoint that has none), in evaluation
        mode; save it with `save_pretrained`, the tokenizer beside it.

    Raises:
        InputError: the checkpoint or a setting cannot be used.
    """
    return upcycle_with_report(source, **settings).model


def upcycle_with_report(source: str | Path | PreTrainedModel, **settings: Any) -> Upcycled:
    """Do what `upcycle` does, and account for every weight.

    Args:
        source: as in `upcycle`.
        **settings: as in `upcycle`.

    Returns:
        The sparse model, the dense one and the report.

    Raises:
        InputError: the checkpoint or a setting cannot be used.
    """
    options = upcycling_options(settings)
    if isinstance(source, (str, Path)):
        checkpoint = load_checkpoint(str(source), head=options.head)
        ids = special_ids(load_tokenizer(str(source), model=checkpoint.model))
        return upcycle_checkpoint(checkpoint, options=options, token_ids=ids)
    return upcycle_checkpoint(given_checkpoint(source, head=options.head), options=options, token_ids={})


def upcycle_checkpoint(checkpoint: Checkpoint, *, options: UpcyclingOptions, token_ids: dict[str, int]) -> Upcycled:
    """Turn a loaded checkpoint into a sparse model.

    Args:
        checkpoint: the dense model.
        options: the settings.
        token_ids: ids of [CLS], [SEP] and the mask under their names in a configuration, where a tokenizer says them.

    Returns:
        The sparse model, the dense one and the report.

    Raises:
        InputError: the checkpoint's shape does not fit the options.
    """
    config = sparse_config(checkpoint, options=options, token_ids=token_ids)
    placement = translate(checkpoint)
    place_experts(placement, config=config, options=options)
    extend_table(placement.weights, length=config.max_position_embeddings, options=options)
    model = _fresh_model(config, head=_own_head(checkpoint.head), seed=options.seed)
    model.to(checkpoint.model.dtype)
    new = _fill(model, placement)
    report = _report(checkpoint, model=model, placement=placement, options=options, new=new)
    return Upcycled(model.eval(), checkpoint.model, report)


def sparse_config(checkpoint: Checkpoint, *, options: UpcyclingOptions, token_ids: dict[str, int]) -> SortyardConfig:
    """The configuration of the sparse model; arguments as in `upcycle_checkpoint`."""
    source = checkpoint.model.config
    settings = family_of(source, where=checkpoint.name).settings(source, head=checkpoint.head)
    settings = extended(_labels(checkpoint) | settings, options=options)
    asked = {name: getattr(options, name) for name in ("attention_probs_dropout_prob", "classifier_pooling")}
    settings |= {name: value for name, value in asked.items() if value is not None}
    layers, number = settings["num_hidden_layers"], options.num_experts
    strange = [layer for layer in options.expert_layers or () if not 0 <= layer < layers]
    if strange:
        raise InputError(f"expert_layers: the checkpoint has layers 0 to {layers - 1}, not {strange}")
    kinds = settings.pop("attention_layers", None)
    if kinds is not None and options.attention == "bucket":
        kinds = ["bucket" if kind == "dense" else kind for kind in kinds]
    experts = expert_options(options, intermediate_size=settings["intermediate_size"])
    return SortyardConfig(
        **settings,
        **options.model_dump(include=set(AttentionOptions.model_fields)),
        **experts.model_dump(),
        attention_layers=kinds,
        expert_layers=None if options.expert_layers is None else [options.is_expert_layer(i) for i in range(layers)],
        shared_expert=number > 1 and options.experts_from == "shared",
        **(_source_ids(source) | token_ids),
    )


def special_ids(tokenizer: Any) -> dict[str, int]:
    """A tokenizer's ids of [CLS], [SEP] and the mask under their names in a configuration; absent ones left out.

    The padding id is the checkpoint's, as its embedding is.
    """
    found = {name: getattr(tokenizer, name) for name in ("cls_token_id", "sep_token_id", "mask_token_id")}
    return {name: value for name, value in found.items() if value is not None}


def _source_ids(source: Any) -> dict[str, Any]:
    names = ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    return {name: getattr(source, name, None) for name in names}


def _labels(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.head not in _CLASSIFIERS:
        return {}
    return {name: getattr(checkpoint.model.config, name) for name in _LABEL_FIELDS}


def _own_head(head: str) -> str:
    return "token_classification" if head == DISCRIMINATOR else head


def _fresh_model(config: SortyardConfig, *, head: str, seed: int) -> SortyardPreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SortyardModel(config) if head == "base" else HEADS[head](config)
    if config.context != "none":
        centre_gates(model)
    return model


def _fill(model: SortyardPreTrainedModel, placement: Placement) -> tuple[str, ...]:
    """Give the model its weights; returns the names of those that the checkpoint had nothing for."""
    prefix = "model." if isinstance(model, SortyardModel) else ""
    weights = {name.removeprefix(prefix): tensor for name, tensor in placement.weights.items()}
    found = model.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    drawn = {name.removeprefix(prefix) for name in placement.drawn}
    parameters = {name for name, _ in model.named_parameters()}  # a tied projection counts as the embedding
    return tuple(sorted((set(found.missing_keys) & parameters) | drawn))


def _report(
    checkpoint: Checkpoint,
    *,
    model: SortyardPreTrainedModel,
    placement: Placement,
    options: UpcyclingOptions,
    new: tuple[str, ...],
) -> UpcyclingReport:
    config: SortyardConfig = model.config
    settings = family_of(checkpoint.model.config, where=checkpoint.name).settings(
        checkpoint.model.config, head=checkpoint.head
    )
    reasons = _inexact_because(checkpoint.head, settings=settings, options=options, config=config)
    limit, counts = config.max_position_embeddings, parameter_counts(model)
    if config.position_embedding_type != "rope":  # beyond its own table the checkpoint computes nothing
        limit = min(limit, settings["max_position_embeddings"])
    if "bucket" in (config.attention_of(layer) for layer in range(config.num_hidden_layers)):
        limit = min(limit, config.options().to_spec().dense_up_to)
    return UpcyclingReport(
        source=checkpoint.name,
        family=checkpoint.model.config.model_type,
        head=_own_head(checkpoint.head),
        is_exact=not reasons,
        exact_up_to=None if reasons else limit,
        inexact_because=reasons,
        num_experts=config.num_experts,
        expert_layers=tuple(layer for layer in range(config.num_hidden_layers) if config.has_experts(layer)),
        parameters=counts.total,
        active_parameters=counts.active,
        source_parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        mapped=placement.mapped,
        unused=tuple(placement.unused),
        new=new,
    )


def _inexact_because(
    head: str, *, settings: dict[str, Any], options: UpcyclingOptions, config: SortyardConfig
) -> tuple[str, ...]:
    """Why the result computes something else; `settings` describe the checkpoint as it was."""
    reasons = []
    if options.experts_from == "drop" and config.num_experts > 1:
        reasons.append(f"{options.drop_ratio:.0%} of each expert's units are drawn anew")
    old = settings["max_position_embeddings"]
    pooling = settings.get("classifier_pooling", "cls")
    if head == "sequence_classification" and config.classifier_pooling != pooling:
        reasons.append(f"the classifier reads {config.classifier_pooling} instead of {pooling}")
    if config.max_position_embeddings > old and options.positions == "stretch":
        reasons.append(f"{old} positions are stretched over {config.max_position_embeddings}")
    return tuple(reasons)
