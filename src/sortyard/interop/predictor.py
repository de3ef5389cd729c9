"""Predictions from any Hugging Face sequence-classification folder, streaming and in input order."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sortyard  # noqa: F401  (registers the Auto classes)
from sortyard.errors import InputError
from sortyard.evaluation.batching import TextOrPair, position_limit, sequence_logits
from sortyard.evaluation.bf16 import has_bf16
from sortyard.evaluation.compiling import compile_model
from sortyard.interop.folder_checks import check_model_folder

Precision = Literal["fp32", "bf16", "fp16", "auto"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"),
    *("spiece.model", "sentencepiece.bpe.model"),
)


@dataclass(frozen=True)
class Prediction:
    """The answer for one text.

    `label` is the class (None for a regression), `score` its probability (a regression: the value), `scores` every
    class's probability by name (a regression: the value under its name), `logits` what the model returned.
    """

    label: str | None
    score: float
    scores: dict[str, float]
    logits: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self) | {"logits": list(self.logits)}


class Predictor:
    """A loaded model with its tokenizer. Use `Predictor.from_pretrained`.

    Logits are those of `transformers.pipeline("text-classification", ..., truncation=True)`. A model with one output
    is read as a regression, and its value is given as it is, unless its configuration says otherwise.
    """

    def __init__(self, model: Any, *, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = position_limit(model, tokenizer=tokenizer)
        self.label_names = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
        self.problem = _problem_of(model.config)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, device: str = "cpu", precision: Precision = "fp32", compiled: bool = False
    ) -> Self:
        """Load a model folder from the disk; nothing is fetched.

        Args:
            folder: a run's `model` folder, or any folder that `save_pretrained` wrote with its tokenizer.
            device: `cpu`, `cuda` or `cuda:N`.
            precision: number format of the weights and the matrix products; "auto" is bf16 where the device has it.
            compiled: run the model under `torch.compile`, for long work: the first batches take a minute or so.

        Returns:
            The predictor, in evaluation mode.

        Raises:
            InputError: the folder is missing, is no model, has no trained sequence-classification head or no
                tokenizer that fits it, or the device, the precision or a compiler is not there.
        """
        path = Path(folder)
        _check_folder(path)
        check_model_folder(path)
        _check_machine(device=device, precision=precision)
        if precision == "auto":
            precision = "bf16" if has_bf16(torch.device(device).type) else "fp32"
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,  # a pickle could run anything
                dtype=DTYPES[precision],
                output_loading_info=True,
            )
        except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
            raise InputError(f"{path}: cannot be loaded as a sequence-classification model ({error})") from error
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise InputError(f"{path}: weights are missing ({missing}); save the fine-tuned model again")
        check_vocabulary(model, tokenizer=tokenizer, where=str(path))
        model = model.to(device).eval()
        return cls(compile_model(model) if compiled else model, tokenizer=tokenizer)

    def predict(
        self, texts: Iterable[TextOrPair], *, batch_size: int | None = None, tokens_per_batch: int | None = None
    ) -> Iterator[Prediction]:
        """Classify texts as they come.

        Args:
            texts: texts, or (text, text) pairs; may be endless, as only a few windows of them are held. They are read
                in another thread.
            batch_size: sequences a forward at most, at least 1; None = as many as there is room for.
            tokens_per_batch: tokens a forward at most, padding included, but one sequence always; None = what suits
                the device.

        Yields:
            One prediction for each text, in the order of the texts.

        Raises:
            InputError: `batch_size` or `tokens_per_batch` is below 1, `texts` is one string instead of several, an
                item is no text, or the model's answer is NaN.
        """
        answered = self.predict_beside(texts, batch_size=batch_size, tokens_per_batch=tokens_per_batch)
        return (prediction for _, prediction in answered)

    def predict_beside(
        self, texts: Iterable[TextOrPair], *, batch_size: int | None = None, tokens_per_batch: int | None = None
    ) -> Iterator[tuple[TextOrPair, Prediction]]:
        """As `predict`, with each text beside its prediction.

        Args:
            texts: as for `predict`.
            batch_size: as for `predict`.
            tokens_per_batch: as for `predict`.

        Yields:
            Texts and predictions, in the order of the texts.

        Raises:
            InputError: as for `predict`.
        """
        for name, value in (("batch_size", batch_size), ("tokens_per_batch", tokens_per_batch)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if isinstance(texts, str):
            raise InputError("texts is a single string; give a list of texts, such as [text]")
        rows = sequence_logits(
            self.model,
            tokenizer=self.tokenizer,
            inputs=_checked(texts),
            batch_size=batch_size,
            tokens_per_batch=tokens_per_batch,
            max_length=self.max_length,
        )
        return ((text, self._prediction(logits, number=number)) for number, (text, logits) in enumerate(rows, start=1))

    def _prediction(self, logits: NDArray[np.float32], *, number: int) -> Prediction:
        if np.isnan(logits).any():
            raise InputError(
                f"text {number}: the model answers with NaN in {self.model.dtype}; take precision fp32, or another "
                "model where that is taken"
            )
        scores = _SCORES[self.problem](logits.astype(np.float64))
        best = int(scores.argmax())
        return Prediction(
            label=None if self.problem == "regression" else self.label_names[best],
            score=float(scores[best]),
            scores=dict(zip(self.label_names, scores.tolist(), strict=True)),
            logits=tuple(float(value) for value in logits),
        )


def check_vocabulary(model: Any, *, tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer with ids that the model has no embeddings for.

    Args:
        model: a transformers model.
        tokenizer: the one beside it.
        where: what to call the folder in the message.

    Raises:
        InputError: the tokenizer has such ids.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    size = 1 + max(tokenizer.get_vocab().values(), default=-1)  # more than its entries where ids are left out
    if size > rows:
        raise InputError(
            f"{where}: the tokenizer has ids up to {size - 1:,}, but the model embeds only {rows:,}; put the tokenizer "
            "back that the model was trained with"
        )


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max())
    result: NDArray[np.float64] = shifted / shifted.sum()
    return result


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 0.5 * (1 + np.tanh(logits / 2))  # does not overflow, unlike 1 / (1 + exp(-x))
    return result


_SCORES = {
    "regression": lambda logits: logits,
    "multi_label_classification": _sigmoid,
    "single_label_classification": _softmax,
}


def _problem_of(config: Any) -> str:
    if config.problem_type in _SCORES:
        return str(config.problem_type)
    return "regression" if config.num_labels == 1 else "single_label_classification"


def _checked(texts: Iterable[TextOrPair]) -> Iterator[TextOrPair]:
    for number, text in enumerate(texts, start=1):
        pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
        if not (isinstance(text, str) or pair):
            raise InputError(f"text {number} is {type(text).__name__}; give a string, or a pair of strings")
        yield text


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder; give a model folder, such as a run's `model`")
    config = path / "config.json"
    if not config.is_file():
        hint = f"; did you mean {path / 'model'}?" if (path / "model" / "config.json").is_file() else ""
        raise InputError(f"{path}: is no model folder, it has no config.json{hint}")
    try:
        names = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{config}: is not a JSON object ({error})") from error
    if not any(str(name).endswith("ForSequenceClassification") for name in names):
        what = ", ".join(map(str, names)) or "no architecture"
        raise InputError(f"{path}: has no sequence-classification head ({what}); fine-tune the model on a task first")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(f"{path}: has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); save it beside the model")


def _check_machine(*, device: str, precision: str) -> None:
    if precision not in (*DTYPES, "auto"):
        raise InputError(f"precision is {precision!r}; choose one of {', '.join(DTYPES)}, auto")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"device is {device!r}; choose cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {device!r}, but torch sees no GPU here; use cpu")
