"""How a finished model uses its experts: on its own held-out data, or on any texts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sortyard.data.options import CorpusOptions, MaskingOptions
from sortyard.durable import replace_bytes
from sortyard.errors import InputError, first_line
from sortyard.jobs.display import Display
from sortyard.jobs.folders import is_demo, model_folder, open_job
from sortyard.jobs.routing_texts import RoutingText, TextReader, example_text, named_sources, spread
from sortyard.jobs.sections import adapt_section, finetune_section, pretrain_section
from sortyard.runs.folder import RunFolder
from sortyard.runs.lock import run_lock

if TYPE_CHECKING:
    from torch import Tensor

    from sortyard.evaluation.routing_statistics import RoutingStatistics, Saturation

MAX_TOKENS = 262_144
FEW_TOKENS = 100_000
SEQUENCE_LENGTH = 512
SATURATION_TOKENS = 32_768
MAX_CHECKPOINTS = 12


@dataclass(frozen=True)
class RoutingRequest:
    """What to count on.

    Attributes:
        data: Texts, each a domain, as `PATH` or `NAME=PATH`; none takes the run's held-out rows or development
            examples.
        text_column: Column that holds the text; None takes the run's own, or `text`.
        max_tokens: Tokens read of each domain, about, spread over all of it.
        batch_size: Sequences in one forward pass.
    """

    data: tuple[str, ...] = ()
    text_column: str | None = None
    max_tokens: int = MAX_TOKENS
    batch_size: int = 32


def evaluate_routing(path: Path, *, request: RoutingRequest, display: Display) -> dict[str, Any]:
    """Counts how a model's experts are used; a run keeps the result as `eval/routing.json`.

    Args:
        path: A run, a demo, or a model's folder (then data is needed).
        request: The texts, and how much of them is read.
        display: Told what is being done.

    Returns:
        JSON values: every statistic, and notes on what they can bear.

    Raises:
        InputError: The folder, the model or the texts cannot be used; a model without experts is refused.
    """
    if is_demo(path):
        path = path / "finetune"
    folder, sources = model_folder(path), named_sources(request.data)
    run = RunFolder.open(path) if (path / "job.json").is_file() else None
    if run is None and not sources:
        raise InputError(f"{path}: is no run and has no text of its own: give --data")
    model = _load_encoder(folder)
    with _alone(run):
        reader = _reader(run, request=request, folder=folder, model=model, display=display)
        reader.check(sources.values())
        texts = [reader.given(*item) for item in sources.items()] or [_own_text(run, reader=reader, model=model)]
        statistics = _statistics(model, texts, run=run, display=display)
        record = _record(statistics, texts, masked=reader.masking is not None, folder=folder)
        file = _keep(record, run)
    return {"run": path, "file": file, **record}


def _load_encoder(folder: Path) -> Any:
    """Loads a model's encoder in float32.

    Raises:
        InputError: It is damaged, or has no experts.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    import sortyard  # noqa: F401  (registers the Auto classes)

    config = _loaded(AutoConfig, folder)
    if config.model_type != "sortyard" or config.num_experts == 1:
        raise InputError(
            f"{folder}: is a {config.model_type} model without experts, so there is no routing to evaluate; "
            "`sortyard upcycle` makes a model with experts of a dense one"
        )
    model, found = _loaded(
        AutoModel, folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )  # a pickle could run anything
    if found["missing_keys"]:
        shown = ", ".join(sorted(found["missing_keys"])[:3])
        raise InputError(f"{folder}: weights are missing ({shown}); put back the files that were saved together")
    return model.eval()


def _loaded(kind: Any, folder: Path, **settings: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **settings)
    except Exception as error:  # what a damaged folder makes the libraries raise is of any kind
        raise InputError(f"{folder}: the model cannot be loaded: {first_line(error)}") from error


@contextmanager
def _alone(run: RunFolder | None) -> Iterator[None]:
    """Keeps training out of a run whose checkpoints are read."""
    if run is None:
        yield
    else:
        with run_lock(run.path):
            yield


def _reader(
    run: RunFolder | None, *, request: RoutingRequest, folder: Path, model: Any, display: Display
) -> TextReader:
    """Says how text is read: as in the run's training, or else in plain rows without masks."""
    length = min(SEQUENCE_LENGTH, model.config.max_position_embeddings)
    corpus, seed = CorpusOptions(path=str(folder), sequence_length=length), 0
    masking: MaskingOptions | None = None
    if run is not None:
        job, recipe = open_job(run)
        seed = recipe.seed
        if job.verb != "finetune":
            section = adapt_section(recipe) if job.verb == "adapt" else pretrain_section(recipe)
            masking = section.masking if section.objective in ("masked_lm", "both") else None
            corpus = section.data
    if request.text_column is not None:
        corpus = corpus.model_copy(update={"text_column": request.text_column})
    return TextReader(
        corpus=corpus,
        masking=masking,
        model=folder,
        seed=seed,
        batch_size=request.batch_size,
        max_tokens=request.max_tokens,
        display=display,
    )


def _own_text(run: RunFolder | None, *, reader: TextReader, model: Any) -> RoutingText:
    assert run is not None
    job, recipe = open_job(run)
    if job.verb != "finetune":
        return reader.held_out(run=run.path)
    from sortyard.data.encoding import reads_token_types
    from sortyard.evaluation.batching import position_limit
    from sortyard.tokenizer.train import load_tokenizer

    tokenizer, options = load_tokenizer(reader.model), finetune_section(recipe).task
    limits = [options.max_length, position_limit(model, tokenizer=tokenizer) or options.max_length]
    return example_text(
        options,
        tokenizer=tokenizer,
        max_length=min(limits),
        token_types=reads_token_types(model.config, tokenizer=tokenizer),
        batch_size=reader.batch_size,
        max_tokens=reader.max_tokens,
    )


def _statistics(
    model: Any, texts: Sequence[RoutingText], *, run: RunFolder | None, display: Display
) -> "RoutingStatistics":
    from sortyard.evaluation.routing_collection import collect_routing
    from sortyard.evaluation.routing_statistics import routing_statistics

    for text in texts:
        read = sum(_num_tokens(batch) for batch in text.batches)
        part = "" if read == text.num_tokens else f" of {text.num_tokens:,}, spread over all of it"
        display.say(f"text      {text.name}: {read:,} tokens{part}")
    counts = collect_routing(
        model, {text.name: text.batches for text in texts}, vocab_size=model.get_input_embeddings().num_embeddings
    )
    statistics = routing_statistics(counts)
    return statistics if run is None else replace(statistics, saturation=_saturation(model, texts, run, display))


def _saturation(model: Any, texts: Sequence[RoutingText], run: RunFolder, display: Display) -> "Saturation | None":
    """Compares the final choice with that of the checkpoints, whose weights the model takes one after the other."""
    from sortyard.evaluation.routing_choices import saturation
    from sortyard.evaluation.routing_collection import collect_choices
    from sortyard.evaluation.routing_statistics import Saturation
    from sortyard.training.checkpoint import CheckpointStore
    from sortyard.training.weights import load_model_tensors

    store = CheckpointStore(run.checkpoints, keep=1, warn=lambda message: display.say(f"warning: {message}"))
    steps = store.steps()
    if len(steps) < 2:
        return None
    steps = [steps[place] for place in _ends_and_between(len(steps), limit=MAX_CHECKPOINTS)]
    batches = _sampled(texts)
    final = collect_choices(model, batches)
    found: dict[int, tuple[float, ...]] = {}
    for step in steps:
        checkpoint = store.load(step)
        if checkpoint is None:
            continue
        display.say(f"checkpoint step {step:,}")
        load_model_tensors(model, _encoder_tensors(checkpoint.tensors("model"), prefix=f"{model.base_model_prefix}."))
        pairs = zip(collect_choices(model, batches), final, strict=True)
        found[step] = tuple(saturation(earlier, last) for earlier, last in pairs)
    return Saturation(tuple(found), tuple(found.values()), num_tokens=len(final[0])) if found else None


def _encoder_tensors(weights: "Mapping[str, Tensor]", *, prefix: str) -> "Mapping[str, Tensor]":
    """Takes the encoder's tensors from those of a model, which has a head or is an encoder itself."""
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return own or weights


def _ends_and_between(count: int, *, limit: int) -> list[int]:
    """Chooses at most `limit` of `count` places, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return [round(number * (count - 1) / (limit - 1)) for number in range(limit)]


def _sampled(texts: Sequence[RoutingText]) -> list[Any]:
    """Takes some batches of each text, so many that all have about `SATURATION_TOKENS` tokens."""
    chosen = []
    for text in texts:
        mean = sum(_num_tokens(batch) for batch in text.batches) / len(text.batches)
        places = spread(len(text.batches), mean_tokens=mean, max_tokens=SATURATION_TOKENS // len(texts))
        chosen += [text.batches[place] for place in places]
    return chosen


def _num_tokens(batch: Any) -> int:
    return int(batch["attention_mask"].sum())


def _record(
    statistics: "RoutingStatistics", texts: Sequence[RoutingText], *, masked: bool, folder: Path
) -> dict[str, Any]:
    from sortyard.tokenizer.train import load_tokenizer

    record = statistics.to_dict(token_name=load_tokenizer(folder).convert_ids_to_tokens)
    for domain, text in zip(record["domains"], texts, strict=True):
        domain |= {"source": text.source, "of_tokens": text.num_tokens}
    return {**record, "masked": masked, "notes": _notes(statistics)}


def _notes(statistics: "RoutingStatistics") -> list[str]:
    """Says what the figures cannot bear."""
    notes = []
    if statistics.num_tokens < FEW_TOKENS:
        notes.append(
            f"only {statistics.num_tokens:,} tokens were counted; below {FEW_TOKENS:,} the figures of single experts "
            "are noisy: give more text"
        )
    if len(statistics.domains) == 1:
        notes.append(
            "only one domain was counted, so nothing is said about specialisation: give --data NAME=PATH several times"
        )
    return notes


def _keep(record: dict[str, Any], run: RunFolder | None) -> Path | None:
    from sortyard.reports.run_data import ROUTING

    if run is None:
        return None
    run.eval.mkdir(exist_ok=True)
    file = run.eval / ROUTING
    replace_bytes(file, (json.dumps(record, ensure_ascii=False) + "\n").encode())
    return file
