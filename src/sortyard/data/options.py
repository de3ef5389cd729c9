"""Where text and examples come from and how they become training samples."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from sortyard.options import Options

TextFormat = Literal["auto", "txt", "jsonl", "tsv", "csv", "parquet"]


class CorpusOptions(Options):
    """The text that a model is pretrained on, and how it is cut into rows."""

    path: str = Field(min_length=1, description="A file, folder, glob pattern, or the name of a hub data set.")
    text_column: str = Field("text", min_length=1, description="Column or JSON field that holds the text.")
    format: TextFormat = Field("auto", description="Format of the files; auto goes by the file extension.")
    hub_config: str | None = Field(None, description="Configuration of the hub data set, where it has several.")
    hub_split: str = Field("train", min_length=1, description="Split of the hub data set to read.")
    max_documents: int | None = Field(None, ge=1, description="Read no more documents than this.")
    max_document_characters: int = Field(
        1_000_000, ge=1000, le=10_000_000, description="Longer documents are cut at white space into several."
    )
    sequence_length: int = Field(512, ge=8, le=1_048_576, description="Tokens of a row, special tokens included.")
    packing: bool = Field(True, description="Fill a row with several documents; off: one document piece per row.")
    validation_fraction: float = Field(
        0.01, ge=0.0, le=0.5, description="Share of the documents held out; they are never trained on."
    )
    shard_tokens: int = Field(
        16_777_216, ge=1024, le=1_073_741_824, description="Tokens after which a new shard file is begun."
    )


class MaskingOptions(Options):
    """Which tokens a masked language model has to predict, and what it sees in their place."""

    probability: float = Field(0.30, gt=0.0, lt=1.0, description="Share of a row's tokens that are predicted.")
    whole_word: bool = Field(True, description="Mask all pieces of a word together.")
    mask_share: float = Field(0.8, ge=0.0, le=1.0, description="Share of the predicted tokens shown as [MASK].")
    random_share: float = Field(0.1, ge=0.0, le=1.0, description="Share of them shown as a random token.")
    keep_share: float = Field(0.1, ge=0.0, le=1.0, description="Share of them shown unchanged.")

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        total = self.mask_share + self.random_share + self.keep_share
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"mask_share + random_share + keep_share must be 1; they are {total:g}")
        return self


TaskName = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "custom"]


class TaskOptions(Options):
    """The labelled examples a model is fine-tuned and evaluated on."""

    name: TaskName = Field("custom", description="A GLUE task, or custom for any file of labelled texts.")
    data: str = Field(min_length=1, description='A folder with the splits, a training file, or "hub" (GLUE tasks).')
    dev: str | None = Field(None, description="File of the development split, where `data` does not hold it.")
    dev_fraction: float = Field(
        0.1, gt=0.0, lt=1.0, description="Share of the training examples held out when there is no development file."
    )
    split_seed: int = Field(0, ge=0, description="Seed of that held-out share.")
    format: TextFormat = Field("auto", description="Format of the files; auto goes by the file extension.")
    type: Literal["classification", "regression"] = Field(
        "classification", description="Kind of label of a custom task; the GLUE tasks know theirs."
    )
    text_column: str | None = Field(None, description="Column of the (first) text; unset: the task's own names.")
    text_pair_column: str | None = Field(None, description="Column of the second text of a pair.")
    label_column: str | None = Field(None, description="Column of the label; unset: the task's own names.")
    max_length: int = Field(128, ge=8, le=1_048_576, description="Tokens kept of an example, specials included.")
    max_train_examples: int | None = Field(None, ge=2, description="Use only this many training examples, seeded.")
    test: Path | None = Field(None, description="File of a test split; its labels may be hidden.")
