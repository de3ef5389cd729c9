"""A look inside a trained model: what its heads read and where its tokens go, saved for the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sortyard.durable import replace_bytes
from sortyard.evaluation.batching import position_limit
from sortyard.evaluation.buckets import BucketMaps, bucket_maps, capture_bucket_inputs
from sortyard.model.experts.layer import ExpertLayer

MAX_PICTURE_TOKENS = 128
MAX_SAMPLE_TOKENS = 64
MAX_SAMPLES = 6


def write_inspection(run: Path, *, model: Any, tokenizer: Any, texts: Sequence[str]) -> Path:
    """Look inside a model and write `inspection.json` into its run folder.

    Args:
        run: the run's folder.
        model: the trained sortyard model or head.
        tokenizer: its tokenizer.
        texts: real texts, at least one; the longest is used for the attention picture, the first few for the experts.

    Returns:
        The file's path.
    """
    path = run / "inspection.json"
    content = inspect_model(model, tokenizer=tokenizer, texts=texts)
    replace_bytes(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())
    return path


def inspect_model(model: Any, *, tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Return what `write_inspection` writes: `buckets` and `routing`, each empty where the model has none.

    Raises:
        ValueError: there are no texts.
    """
    if not texts:
        raise ValueError("inspection needs at least one text; give a sentence")
    was_training = model.training
    model.eval()
    try:
        longest = max(texts, key=len)
        return {
            "buckets": _buckets(model, tokenizer=tokenizer, text=longest),
            "routing": _routing(model, tokenizer=tokenizer, texts=texts[:MAX_SAMPLES]),
        }
    finally:
        model.train(was_training)


def _encode(model: Any, tokenizer: Any, *, text: str, limit: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return a text's model inputs [1, T] and its tokens, cut to a limit and to what the model can hold."""
    longest = min(limit, position_limit(model, tokenizer=tokenizer) or limit)
    ids = tokenizer(text, truncation=True, max_length=longest)["input_ids"]
    batch = {"input_ids": torch.tensor([ids], device=model.device)}
    return batch, [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def _buckets(model: Any, *, tokenizer: Any, text: str) -> dict[str, Any]:
    batch, tokens = _encode(model, tokenizer, text=text, limit=MAX_PICTURE_TOKENS)
    maps = [bucket_maps(inputs) for inputs in capture_bucket_inputs(model, batch=batch)]
    if not maps:
        return {}
    return {
        "num_tokens": len(tokens),
        "layers": [layer.quality.as_dict() for layer in maps],
        "picture": _picture(maps[len(maps) // 2], tokens=tokens),
    }


def _picture(maps: BucketMaps, *, tokens: list[str]) -> dict[str, Any]:
    """Return the maps of the head whose exact keys hold the median mass: neither the best case nor the worst."""
    head = int(maps.mass_kept_by_head.argsort()[len(maps.mass_kept_by_head) // 2])
    kind = maps.exact[head].int() + 2 * maps.summarised[head].int()
    return {
        "layer": maps.quality.layer,
        "head": head,
        "tokens": tokens,
        "mass": [[round(value, 5) for value in row] for row in maps.mass[head].tolist()],
        "kind": kind.tolist(),
        "mass_kept": float(maps.mass_kept_by_head[head]),
        "output_error": maps.quality.output_error,
        "sparsity": maps.quality.sparsity,
    }


def _routing(model: Any, *, tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    layers = [module for module in model.modules() if isinstance(module, ExpertLayer)]
    if not layers:
        return {}
    samples = [_routed_sample(model, layers, tokenizer=tokenizer, text=text) for text in texts]
    return {"num_experts": layers[0].num_experts, "num_layers": len(layers), "samples": samples}


def _routed_sample(model: Any, layers: Sequence[nn.Module], *, tokenizer: Any, text: str) -> dict[str, Any]:
    """Return a text's tokens and, for each expert layer, the experts of each token, the heaviest first."""
    batch, tokens = _encode(model, tokenizer, text=text, limit=MAX_SAMPLE_TOKENS)
    chosen: list[list[list[int]]] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001 - a hook's signature
        record = output[1]
        order = record.weights.argsort(dim=-1, descending=True, stable=True)
        chosen.append(record.experts.gather(-1, order).tolist())

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {"tokens": tokens, "experts": chosen}
