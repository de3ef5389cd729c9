"""`SortyardConfig`: the model's configuration in transformers' terms."""

from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from sortyard.errors import InputError
from sortyard.model.options import ModelOptions
from sortyard.model.parallel_plan import tensor_parallel_plan

ATTENTION_LAYER_TYPES = ("bucket", "dense", "sliding")


@strict
class SortyardConfig(PreTrainedConfig):
    """Configuration of every sortyard model; saved as `config.json`.

    The fields that a recipe may set are described, with their ranges, in `sortyard.model.options`; they carry the
    same names and defaults here, save that a `bias_update_rate` that is left out is 0 for any number of experts, where
    recipes have 0.001 from 32 on. The others fit dense checkpoints of the BERT and ModernBERT families:

    Args:
        attention_layers: kind of attention of each layer ("bucket", "dense" or "sliding"); None = `attention` in all.
        sliding_window: half-width, in tokens, of the window of the "sliding" layers.
        sliding_rope_theta: rotary base of the "sliding" layers; None = that of the others.
        expert_layers: for each layer whether its feed-forward part has experts; None = all, if `num_experts` > 1.
        type_vocab_size: number of token types (BERT has 2); 0 = none.
        embedding_norm: a norm after the embeddings.
        final_norm: a norm after the last block (pre-norm models).
        first_attention_norm: whether the first block norms the attention's input (ModernBERT does not).
        classifier_activation: activation of the sequence classifier's dense layer ("tanh" in BERT's pooler).
        classifier_norm: a norm after it (BERT's pooler has none).
        embedding_size: width of the embeddings where a projection leads to `hidden_size` (ELECTRA); None = that width.
        head_activation: activation of a language model's dense layer; None = `hidden_act`.
        token_head: whether token classifiers and question answering have the classifier's dense layer, too.
        shared_expert: whether a dense feed-forward layer of `intermediate_size` stands beside every layer's experts.
        sparse_prediction: with labels, compute masked-LM logits at the targets only.
        causal: whether a token sees only itself and what stands before it.
        output_router_logits: return the gate scores of each expert layer, unless a call says otherwise.
    """

    model_type = "sortyard"
    keys_to_ignore_at_inference = ["router_logits", "expert_loads", "aux_loss", "task_loss", "sparsity"]  # noqa: RUF012
    default_theta = 10_000.0

    vocab_size: int = 32_000
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    gated_ffn: bool = True
    norm_position: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-5
    use_bias: bool = False
    position_embedding_type: Literal["rope", "learned", "none"] = "rope"
    max_position_embeddings: int = 1024
    rope_parameters: dict[str, Any] | None = None
    type_vocab_size: int = 0
    embedding_norm: bool = True
    final_norm: bool = True
    first_attention_norm: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    classifier_dropout: float | int = 0.0
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_activation: str = "gelu"
    classifier_norm: bool = True
    embedding_size: int | None = None
    head_activation: str | None = None
    token_head: bool = False
    shared_expert: bool = False
    initializer_range: float = 0.02
    sparse_prediction: bool = True
    tie_word_embeddings: bool = True
    causal: bool = False
    pad_token_id: int | None = 0
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    mask_token_id: int | None = None

    attention: Literal["bucket", "dense"] = "bucket"
    attention_layers: list[str] | None = None
    sliding_window: int = 64
    sliding_rope_theta: float | None = None
    selection: Literal["tree", "rounds"] = "tree"
    bucket_size: int = 16
    query_chunk: int = 64
    near_buckets: int = 4
    beam: int = 8
    power_steps: int = 1
    tree_split: Literal["queries", "keys"] = "queries"
    tree_score: Literal["spread", "mean"] = "spread"
    hash: str = "gray"
    num_hash_rounds: int = 2
    multiset: bool = False
    local_window: int = 16
    num_global_tokens: int = 1
    target_sparsity: float | None = None
    num_buckets: int | None = None
    dense_up_to: int | None = None
    bucket_seed: int = 0

    num_experts: int = 8
    num_experts_per_tok: int = 2
    num_expert_groups: int = 4
    num_groups_per_tok: int = 2
    moe_intermediate_size: int = 512
    expert_layers: list[bool] | None = None
    router: Literal["context", "frozen_random", "token_hash"] = "context"
    context: Literal["mean", "running_mean", "ema", "none", "shuffled"] = "mean"
    ema_decay: float = 0.9
    group_gate: Literal["experts", "context"] = "experts"
    routing_weights: Literal["normalized", "straight_through"] = "normalized"
    balance: Literal["default", "literal", "switch", "none"] = "default"
    balance_coef: float = 0.01
    bias_update_rate: float = 0.0
    router_seed: int = 0
    output_router_logits: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.rope_parameters = {"rope_type": "default", "rope_theta": self.default_theta} | (self.rope_parameters or {})
        super().__post_init__(**kwargs)
        for name in ("attention_layers", "expert_layers"):
            layers = getattr(self, name)
            if layers is not None and len(layers) != self.num_hidden_layers:
                raise ValueError(
                    f"{name} names {len(layers)} layers, but num_hidden_layers is {self.num_hidden_layers}"
                )
        unknown = sorted(set(self.attention_layers or ()) - set(ATTENTION_LAYER_TYPES))
        if unknown:
            raise ValueError(f"attention_layers: {unknown} is none of {list(ATTENTION_LAYER_TYPES)}")
        self.options()

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """How transformers cuts the encoder for tensor parallelism; see `tensor_parallel_plan`."""
        return tensor_parallel_plan(self)

    @base_model_tp_plan.setter
    def base_model_tp_plan(self, plan: dict[str, str]) -> None:
        # transformers 5.17 adds a rule for tied embeddings here, under a name that they do not have in our models.
        if plan.items() - self.base_model_tp_plan.items() - {("embed_tokens", "embedding_rowwise")}:
            raise InputError(
                "base_model_tp_plan follows from the other fields and cannot be set; give rules of your own as "
                "DistributedConfig(tp_plan=...)"
            )

    def options(self) -> ModelOptions:
        """The settings a recipe may hold, validated (ranges and how they fit together)."""
        values = {name: getattr(self, name) for name in ModelOptions.model_fields if name != "rope_theta"}
        assert self.rope_parameters is not None
        return ModelOptions(rope_theta=self.rope_parameters["rope_theta"], **values)

    @classmethod
    def from_options(cls, options: ModelOptions, **other: Any) -> Self:
        """A configuration with a recipe's settings; `other` are fields that no recipe holds."""
        values = options.model_dump(exclude={"rope_theta"})
        return cls(rope_parameters={"rope_type": "default", "rope_theta": options.rope_theta}, **values, **other)

    def attention_of(self, layer: int) -> str:
        """Kind of attention of a layer: "bucket", "dense" or "sliding"."""
        return self.attention_layers[layer] if self.attention_layers else self.attention

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's feed-forward part is made of experts."""
        return self.num_experts > 1 and (self.expert_layers is None or self.expert_layers[layer])
