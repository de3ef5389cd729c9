"""What a tokenizer is trained with."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from sortyard.options import Options


class TokenizerOptions(Options):
    """Which tokenizer a run uses: an existing one, or one trained on the run's own text."""

    algorithm: Literal["wordpiece", "bpe"] = Field(
        "wordpiece", description="How words are cut: BERT's wordpiece, or byte-level byte-pair encoding."
    )
    vocab_size: int = Field(32_000, ge=300, le=1_000_000, description="Most entries of the trained vocabulary.")
    lowercase: bool = Field(True, description="Lower the case and drop accents (wordpiece) before cutting.")
    min_frequency: int = Field(2, ge=1, le=1_000_000, description="A pair seen less often than this is never merged.")
    model_max_length: int = Field(
        8192, ge=8, le=1_048_576, description="Longest sequence in tokens that the tokenizer announces to its users."
    )
    path: Path | None = Field(
        None, description="Folder of an existing tokenizer; then nothing is trained and the other fields are unused."
    )
