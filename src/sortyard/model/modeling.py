"""`SortyardModel`: embeddings, blocks and transformers' conventions around them."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

import sortyard.parallel.styles  # noqa: F401 - registers them
from sortyard._registration import register_models
from sortyard.model.attention.layer import SelfAttention
from sortyard.model.configuration import SortyardConfig
from sortyard.model.embeddings import Embeddings
from sortyard.model.encoder import Encoder
from sortyard.model.experts.interface import check_implementation
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.options import check_causal
from sortyard.model.outputs import SortyardModelOutput
from sortyard.model.packing import find_boundaries
from sortyard.model.parallel_plan import check_divides
from sortyard.ops.segments import Segments, make_segments


class SortyardPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the encoder and its heads."""

    config_class = SortyardConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Embeddings", "Block"]  # noqa: RUF012
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"expert_bias"}  # noqa: RUF012 - steps of 0.001 are lost in 16 bits

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, ExpertLayer):
            module.reset_parameters(std)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Check an attention implementation: "sdpa" or "eager"; see `SelfAttention`."""
        if requested_attention not in (None, "sdpa", "eager"):
            raise ValueError(
                f'Specified `attn_implementation="{requested_attention}"` is not supported: the kernels are the '
                "model's own. Choose 'sdpa' (the fast path, buckets included) or 'eager' (the same by materialised "
                "weights)"
            )
        implementation: str = super().get_correct_attn_implementation(requested_attention, is_init_check)
        return implementation

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Check an experts implementation; see `check_implementation`. It is not saved with the model."""
        return check_implementation(requested_experts)

    @classmethod
    def maybe_distribute_model(cls, model: Any, distributed_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        """Cut a model as `from_pretrained` was told by its `distributed_config`; see `tensor_parallel_plan`.

        Raises:
            InputError: if heads or inner widths cannot be divided by the number of processes.
        """
        if distributed_config is not None and distributed_config.tp_size > 1:
            model.check_divides(distributed_config.tp_size)
        distributed: nn.Module = super().maybe_distribute_model(model, distributed_config, *args, **kwargs)
        return distributed

    def check_divides(self, tp_size: int) -> None:
        """Refuse to cut heads or inner widths that fall apart unevenly; see `parallel_plan.check_divides`."""
        check_divides(self.config, tp_size)

    def update_expert_bias(self, expert_loads: Float[Tensor, "L E"] | None) -> None:
        """Move every expert layer's loss-free selection bias; call it once after an optimizer step.

        Args:
            expert_loads: routed copies per expert layer and expert, summed over the whole step; None without experts.
        """
        if expert_loads is None or self.config.bias_update_rate == 0:
            return
        layers = [module for module in self.modules() if isinstance(module, ExpertLayer)]
        for layer, loads in zip(layers, expert_loads, strict=True):
            layer.update_bias(loads)


class SortyardModel(SortyardPreTrainedModel):
    """The encoder: token ids to token states."""

    def __init__(self, config: SortyardConfig) -> None:
        super().__init__(config)
        if config.causal:
            check_causal(config.options())
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        for module in self.encoder.modules():
            if isinstance(module, ExpertLayer | SelfAttention):
                module.config = config
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "B T"] | None = None,
        position_ids: Int[Tensor, "rows T"] | None = None,
        inputs_embeds: Float[Tensor, "B T W"] | None = None,
        cu_seqlens: Int[Tensor, " boundaries"] | None = None,
        global_tokens: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        output_statistics: bool | None = None,
        **kwargs: Any,
    ) -> SortyardModelOutput:
        """Encode a batch.

        Args:
            input_ids: token ids; or give `inputs_embeds`.
            attention_mask: [B, T], 1 at real tokens, 0 at pads; all real when left out.
            token_type_ids: token types of a model that has them.
            position_ids: place of each token in its sequence; counted over its real tokens when left out. Where they
                restart, another packed sequence starts, unless `attention_mask` or `cu_seqlens` is given or the graph
                is traced.
            inputs_embeds: word embeddings instead of ids.
            cu_seqlens: boundaries of packed sequences over the flattened B * T positions. Attention, positions and
                the experts' context stay within a sequence.
            global_tokens: [B, T], 1 at tokens that every query of their sequence reads exactly in the bucket layers,
                besides the first `num_global_tokens`.
            output_attentions: return token-to-token weights; the slow reference path.
            output_hidden_states: return the states before each block and after the last.
            output_router_logits: return the gate scores of each expert layer.
            output_statistics: return balance loss, loads and sparsity; when left out, in training mode and with
                `output_router_logits`. They are values of the whole batch, which pipelines cannot split by row.
            **kwargs: transformers' words for packed rows: `cu_seq_lens_q` is another name of `cu_seqlens`, and what
                repeats it is ignored, as are `num_items_in_batch`, `use_cache` and whatever is None.

        Returns:
            The states, and what the layers report.

        Raises:
            TypeError: for any other keyword argument.
            ValueError: if neither or both of ids and embeddings are given, the mask is not [B, T], a position has no
                embedding, or token types are given to a model without any.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        given = None if position_ids is None else position_ids.expand(inputs_embeds.shape[:2])
        cu_seqlens = find_boundaries(cu_seqlens, kwargs, positions=given, is_masked=attention_mask is not None)
        segments = _segments(inputs_embeds, attention_mask, cu_seqlens)
        positions = segments.positions if given is None else given
        hidden = self.embeddings(inputs_embeds, positions, token_type_ids, are_given=given is not None)
        attentions = _flag(output_attentions, self.config.output_attentions)
        states = _flag(output_hidden_states, self.config.output_hidden_states)
        hidden, trace = self.encoder(
            hidden,
            segments=segments,
            positions=positions,
            token_ids=input_ids,
            global_tokens=None if global_tokens is None else global_tokens.bool(),
            output_attentions=attentions,
            output_hidden_states=states,
        )
        scores = _flag(output_router_logits, self.config.output_router_logits)
        statistics = _flag(output_statistics, self.training or scores)
        if segments.is_traced and statistics:
            raise ValueError(
                "statistics cannot be computed in an exported or compiled graph; call model.eval() first, and leave "
                "labels, output_router_logits and output_statistics out"
            )
        return SortyardModelOutput(
            last_hidden_state=hidden,
            hidden_states=tuple(trace.hidden_states) if states else None,
            attentions=tuple(trace.attentions) if attentions else None,
            router_logits=tuple(record.scores for record in trace.routing) if scores else None,
            aux_loss=trace.aux_loss if statistics else None,
            expert_loads=trace.expert_loads if statistics else None,
            sparsity=self.encoder.sparsity(segments) if statistics else None,
        )


def _flag(given: bool | None, configured: bool) -> bool:
    return configured if given is None else given


def _segments(inputs_embeds: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None) -> Segments:
    batch_size, length = inputs_embeds.shape[:2]
    if attention_mask is not None and tuple(attention_mask.shape) != (batch_size, length):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; it must be [B, T] = {(batch_size, length)}, "
            "1 at real tokens and 0 at pads (packed sequences go by cu_seqlens)"
        )
    return make_segments(
        batch_size,
        length,
        key_padding_mask=None if attention_mask is None else attention_mask.bool(),
        cu_seqlens=cu_seqlens,
        device=inputs_embeds.device,
    )


register_models()
