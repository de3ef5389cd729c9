"""What a model answers to the text that is looked at, in a few rows."""

from typing import Any

import torch
from torch import Tensor

from sortyard.reports.inspector.tokens import EncodedText

Json = dict[str, Any]
SHOWN = 5


def predict(model: Any, *, tokenizer: Any, text: EncodedText, output: Any) -> Json:
    """Return the model's answer.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        text: the text.
        output: what the model returned for it.

    Returns:
        `title` says what was asked; `rows` are answers with their probability, or a regression's value.
    """
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return _class(model, logits=output.logits[0])
    if name.endswith("ForMaskedLM"):
        return _filled_in(model, tokenizer=tokenizer, text=text, output=output)
    if name.endswith("ForCausalLM"):
        return {"title": "The next token", "rows": _likeliest(output.logits[0, -1], tokenizer=tokenizer)}
    return {"title": f"{name} has no head that answers anything", "rows": []}


def _class(model: Any, *, logits: Tensor) -> Json:
    names = [str(model.config.id2label[i]) for i in range(len(logits))]
    if len(names) == 1 or model.config.problem_type == "regression":
        rows = [{"label": label, "value": float(value)} for label, value in zip(names, logits, strict=True)]
        return {"title": "The value", "rows": rows}
    independent = model.config.problem_type == "multi_label_classification"
    shares = logits.float().sigmoid() if independent else logits.float().softmax(-1)
    order = shares.argsort(descending=True)[:SHOWN].tolist()
    return {"title": "The class", "rows": [{"label": names[i], "share": round(float(shares[i]), 4)} for i in order]}


def _filled_in(model: Any, *, tokenizer: Any, text: EncodedText, output: Any) -> Json:
    """Fill in the text's first mask; where it has none, hide the first piece of its last word and ask for that."""
    mask = tokenizer.mask_token_id
    masked = [i for i, token in enumerate(text.ids) if token == mask]
    if masked:
        rows = _likeliest(output.logits[0, masked[0]], tokenizer=tokenizer)
        return {"title": f"What belongs at the first {tokenizer.mask_token}", "rows": rows}
    if mask is None or not text.last_word:
        return {"title": f"Write {tokenizer.mask_token} where a word is to be filled in", "rows": []}
    ids = torch.tensor([text.ids], device=model.device)
    hidden, word = ids.clone(), text.tokens[text.last_word[0] : text.last_word[-1] + 1]
    hidden[0, list(text.last_word)] = mask
    with torch.no_grad():
        logits = model(input_ids=hidden).logits[0, text.last_word[0]]
    piece = "its first piece" if len(word) > 1 else "it"
    title = f"The last word, {' '.join(word)}, hidden: what the model puts for {piece}"
    return {"title": title, "rows": _likeliest(logits, tokenizer=tokenizer)}


def _likeliest(logits: Tensor, *, tokenizer: Any) -> list[Json]:
    shares, ids = logits.float().softmax(-1).topk(min(SHOWN, len(logits)))
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    return [{"label": str(t), "share": round(float(s), 4)} for t, s in zip(tokens, shares, strict=True)]
