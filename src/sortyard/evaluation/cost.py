"""What a model costs before it is trained: parameters, arithmetic and memory, from its shapes alone.

Everything here reads a module's shapes, so a model built on torch's meta device, which holds no numbers, will do.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sortyard.evaluation.activations import FLOAT_BYTES, HALF_BYTES, checkpoint_bytes, head_bytes, layer_bytes
from sortyard.model.experts.layer import ExpertLayer
from sortyard.ops.bucket_attention import BucketSpec, expected_sparsity
from sortyard.parallel.options import ActivationCheckpointing

FLOPS_PER_MAC = 2
_GATES = (".gate", ".group_gate")  # of the routers, bare tensors


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; tied ones count once.

    `active` leaves out, in every expert layer, the experts that a token did not choose. `embedding` are the lookup
    tables (words, positions, types), which are part of both.
    """

    total: int
    active: int
    embedding: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a training step needs at its peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return self.weights + self.gradients + self.optimizer + self.activations


def meta_model(config: Any, *, head: str) -> Any:
    """Build a model's shapes without its numbers.

    Args:
        config: a `SortyardConfig`, such as `SortyardConfig.from_options(...)`.
        head: a key of `sortyard.model.factory.HEADS`.

    Returns:
        The model on the meta device; it can be counted, not run.
    """
    from sortyard.model.factory import HEADS

    with torch.device("meta"):
        return HEADS[head](config)


def parameter_counts(model: Any) -> ParameterCounts:
    """Count a model's parameters, of whatever architecture; only sortyard's expert layers have inactive ones."""
    total = sum(parameter.numel() for parameter in model.parameters())
    chosen = getattr(model.config, "num_experts_per_tok", 0)
    idle = sum(_expert_size(layer) * (layer.num_experts - chosen) for layer in expert_layers(model))
    tables = {id(table.weight): table.weight for table in model.modules() if isinstance(table, nn.Embedding)}
    return ParameterCounts(
        total=total, active=total - idle, embedding=sum(weight.numel() for weight in tables.values())
    )


def forward_flops_per_token(model: Any, *, length: int, attention: Literal["own", "dense"] = "own") -> float:
    """Estimate the arithmetic of one token's forward pass through the encoder, without a vocabulary head.

    A multiply-add counts as 2. Linear layers and routers' gates take 2 x weights, expert layers only those of the
    chosen experts; attention takes 4 x keys x hidden size; bucket attention besides what choosing costs
    (`_selection_flops`). Norms, activations, softmax and rotations, a few per cent together, are left out.

    Args:
        model: a sortyard model or head, real or meta.
        length: tokens of a sequence, at least 1.
        attention: `dense` counts every layer as dense attention, to compare with.

    Returns:
        FLOPs per token; multiply by 3 for forward and backward.
    """
    config, encoder = model.config, getattr(model, "model", model).encoder
    linear = sum(module.weight.numel() for module in encoder.modules() if isinstance(module, nn.Linear))
    experts = sum(_expert_size(layer) * config.num_experts_per_tok for layer in expert_layers(encoder))
    tensors = (*encoder.named_parameters(), *encoder.named_buffers())  # a gate that never learns is a buffer
    gates = sum(tensor.numel() for name, tensor in tensors if name.endswith(_GATES))
    kinds = ["dense" if attention == "dense" else config.attention_of(i) for i in range(config.num_hidden_layers)]
    mixing = sum(_attention_flops(config, kind=kind, length=length) for kind in kinds)
    return float(FLOPS_PER_MAC * (linear + experts + gates) + mixing)


def head_flops_per_target(model: Any) -> float:
    """Estimate the arithmetic of one prediction of whatever head stands on the encoder."""
    if not hasattr(model, "model"):
        return 0.0
    inner = {id(module) for module in model.model.modules()}
    head = (module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in inner)
    return float(FLOPS_PER_MAC * sum(module.weight.numel() for module in head))


def training_memory(
    model: Any,
    *,
    micro_batch_size: int,
    length: int,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    activation_checkpointing: ActivationCheckpointing = "none",
    activation_checkpointing_every: int = 1,
    target_share: float = 0.0,
) -> MemoryEstimate:
    """Estimate the peak memory of training with AdamW.

    With P parameters, N = micro_batch_size x length tokens and D hidden size:

        weights      4 P (+ 2 P for the 16-bit copies of autocast)
        gradients    4 P
        optimizer    8 P (two moments)
        activations  N (8 D + what `activations.layer_bytes` says of each layer) + targets x `activations.head_bytes`

    Of checkpointed layers one's activations are alive at a time, and each keeps its input of 4 D, or in selective mode
    the results of its products, too: b (6 D + F), 2 F where gated.

    Args:
        model: a sortyard model with a head, real or meta.
        micro_batch_size: sequences in one forward pass.
        length: tokens of each.
        precision: number format of the matrix products.
        activation_checkpointing: what layers compute again in the backward pass.
        activation_checkpointing_every: every so many-th layer does.
        target_share: share of the positions whose logits over the vocabulary are computed, 0 to 1.

    Returns:
        The parts in bytes. Allocators and libraries come on top; expect the process to need 10 to 30 % more.
    """
    config, size, tokens = model.config, parameter_counts(model).total, micro_batch_size * length
    half = precision != "fp32"
    numbers = range(config.num_hidden_layers)
    layers = [
        layer_bytes(config, layer=i, keys=keys_per_query(config, layer=i, length=length), half=half) for i in numbers
    ]
    again = [] if activation_checkpointing == "none" else numbers[::activation_checkpointing_every]
    line, is_selective = checkpoint_bytes(config), activation_checkpointing == "selective"
    kept = {i: line + (_product_bytes(config, layer=i, half=half) if is_selective else 0) for i in again}
    per_token = 2 * line + sum(kept.get(i, layers[i]) for i in numbers)
    per_token += max((layers[i] - kept[i] + line for i in again), default=0.0)
    head = sum(head_bytes(config, half=half)) if target_share else 0.0
    return MemoryEstimate(
        weights=size * (FLOAT_BYTES + (2 if half else 0)),
        gradients=size * FLOAT_BYTES,
        optimizer=2 * size * FLOAT_BYTES,
        activations=math.ceil(tokens * (per_token + target_share * head)),
    )


def expert_layers(model: Any) -> Iterator[ExpertLayer]:
    """The expert layers of a model, in order."""
    return (module for module in model.modules() if isinstance(module, ExpertLayer))


def _expert_size(layer: ExpertLayer) -> int:
    """Parameters of one expert of a layer."""
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False)) // layer.num_experts


def keys_per_query(config: Any, *, layer: int, length: int) -> float:
    """Estimate how many keys a query of a layer reads, summaries included.

    Args:
        config: a `SortyardConfig`.
        layer: number of the layer.
        length: tokens of a sequence.
    """
    return _keys_of_kind(config, kind=config.attention_of(layer), length=length)


def _keys_of_kind(config: Any, *, kind: str, length: int) -> float:
    if kind == "bucket":
        return length * (1 - expected_sparsity(config.options().to_spec(), length, causal=config.causal))
    visible = min(length, 2 * config.sliding_window + 1) if kind == "sliding" else length
    return float(visible / 2 if config.causal else visible)


def _attention_flops(config: Any, *, kind: str, length: int) -> float:
    reading: float = 2 * FLOPS_PER_MAC * _keys_of_kind(config, kind=kind, length=length) * config.hidden_size
    chooses = kind == "bucket" and length > config.options().to_spec().dense_up_to
    if not chooses:
        return reading
    return reading + _selection_flops(config.options().to_spec(), width=config.hidden_size, length=length)


def _selection_flops(spec: BucketSpec, *, width: int, length: int) -> float:
    """Estimate, per token and layer, what choosing buckets costs.

    tree: at each of log2(length / bucket_size) levels, power steps of two products with the keys, one projection, and
    the means of keys and values; and each chunk scores at most 2 x beam nodes a level. rounds: one projection a bit.
    """
    buckets = spec.num_buckets or max(1.0, length / spec.bucket_size)
    levels = max(1.0, math.log2(buckets)) if buckets > 1 else 0.0
    if spec.selection == "rounds":
        return 2 * FLOPS_PER_MAC * spec.num_hash_rounds * levels * width  # queries and keys
    split = FLOPS_PER_MAC * (2 * spec.power_steps + 1) * width + 2 * width
    descent = FLOPS_PER_MAC * 2 * spec.beam * width / spec.query_chunk
    return levels * (split + descent)


def _product_bytes(config: Any, *, layer: int, half: bool) -> float:
    """Bytes for each token of the results of a layer's matrix products."""
    inner = config.intermediate_size
    if config.has_experts(layer):
        routed = config.num_experts_per_tok * (config.moe_intermediate_size + config.hidden_size)
        inner = routed + (inner if config.shared_expert else 0)
    return (HALF_BYTES if half else FLOAT_BYTES) * float(6 * config.hidden_size + (1 + config.gated_ffn) * inner)
