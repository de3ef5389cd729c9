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
    # By Zipf's law the 32,000th word of English comes some 80 times in these; reading them takes about two minutes.
    max_characters: int = Field(
        200_000_000,
        ge=0,
        le=100_000_000_000,
        description="Characters of text it is trained on at most, taken evenly from all of a larger text; 0: all.",
    )
    model_max_length: int = Field(
        8192, ge=8, le=1_048_576, description="Longest sequence in tokens that the tokenizer announces to its users."
    )
    path: Path | None = Field(
        None, description="Folder of an existing tokenizer; then nothing is trained and the other fields are unused."
    )
