"""What a recipe may say of the model. Torch-free; the names are those of `SortyardConfig`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sortyard.model.attention.options import AttentionOptions
from sortyard.model.experts.options import ExpertOptions
from sortyard.options import Options


class EncoderOptions(Options):
    """Width, depth, positions, norms and heads."""

    hidden_size: int = Field(256, ge=8, le=16_384, description="width of the token states")
    num_hidden_layers: int = Field(4, ge=1, le=256, description="number of blocks")
    num_attention_heads: int = Field(4, ge=1, le=256, description="attention heads; must divide hidden_size")
    intermediate_size: int = Field(1024, ge=8, le=131_072, description="inner width of a dense feed-forward layer")
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"] = Field(
        "gelu", description="activation of the feed-forward layers"
    )
    gated_ffn: bool = Field(True, description="gated feed-forward (GeGLU, SwiGLU) instead of a plain one")
    norm_position: Literal["pre", "post"] = Field("pre", description="norm before a sublayer, or after its residual")
    use_bias: bool = Field(False, description="bias in the linear layers and the norms (BERT has them)")
    position_embedding_type: Literal["rope", "learned", "none"] = Field("rope", description="how positions enter")
    max_position_embeddings: int = Field(1024, ge=8, le=16_777_216, description="longest sequence, in tokens")
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary frequencies")
    hidden_dropout_prob: float = Field(0.0, ge=0, lt=1, description="dropout after embeddings and sublayers")
    attention_probs_dropout_prob: float = Field(0.0, ge=0, lt=1, description="dropout on attention weights")
    classifier_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before a classification head")
    classifier_pooling: Literal["cls", "mean"] = Field(
        "cls", description="what a sequence classifier reads: the first token (of a causal model the last) or the mean"
    )


class ModelOptions(EncoderOptions, AttentionOptions, ExpertOptions):
    """The whole model section of a recipe, flat: `model.num_experts=16`."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.position_embedding_type == "rope" and (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"rotary positions need an even head width, got {self.hidden_size} / {self.num_attention_heads}; "
                "change num_attention_heads or set position_embedding_type: learned"
            )
        return self
