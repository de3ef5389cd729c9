"""Does the sparse model compute what the dense one did? Measured, not believed."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sortyard.interop.upcycling.convert import Upcycled

LENGTH = 48
FIRST_ORDINARY_ID = 5  # below stand padding and other special tokens


class Difference(NamedTuple):
    """How far two models' outputs lie apart at most, and how large the outputs are at most."""

    absolute: float
    scale: float


@torch.no_grad()
def largest_difference(upcycled: Upcycled, *, length: int = LENGTH, seed: int = 0) -> Difference:
    """Run both models on random tokens, one row of them padded.

    Args:
        upcycled: the two models; their modes and weights stay as they are.
        length: tokens of the longer row, at least 4.
        seed: of the tokens.

    Returns:
        The largest absolute difference of token states and, where the checkpoint had a trained head, of its outputs,
        at real tokens; and the largest absolute value there.
    """
    original, model = upcycled.original, upcycled.model
    was_training = original.training
    original.eval()
    batch = random_batch(original.config, length=length, seed=seed)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    real = batch["attention_mask"].bool()
    pairs = [(_states(original.base_model, batch), _states(model.base_model, batch))]
    if upcycled.report.head != "base" and not _has_new_head(upcycled):
        pairs += list(zip(_outputs(original(**batch)), _own_outputs(upcycled, batch), strict=True))
    original.train(was_training)
    differences = [_difference(theirs, ours, real) for theirs, ours in pairs]
    absolute, scale = torch.tensor(differences, dtype=torch.float64).max(0).values.tolist()  # NaN stays NaN
    return Difference(absolute, scale)


def random_batch(config: Any, *, length: int, seed: int) -> dict[str, Tensor]:
    """Two rows of random token ids with their mask; the second is padded at the end."""
    generator = torch.Generator().manual_seed(seed)
    pad = config.pad_token_id or 0
    first = min(FIRST_ORDINARY_ID, config.vocab_size - 1)
    ids = torch.randint(first, config.vocab_size, (2, length), generator=generator)
    ids[ids == pad] = first if first != pad else first + 1
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def _states(encoder: Any, batch: dict[str, Tensor]) -> Tensor:
    states: Tensor = encoder(**batch).last_hidden_state
    return states


def _outputs(found: Any) -> list[Tensor]:
    return [found[name] for name in ("logits", "start_logits", "end_logits", "prediction_logits") if name in found]


def _own_outputs(upcycled: Upcycled, batch: dict[str, Tensor]) -> list[Tensor]:
    outputs = _outputs(upcycled.model(**batch))
    if type(upcycled.original).__name__ == "ElectraForPreTraining":
        outputs = [logits[..., 1] - logits[..., 0] for logits in outputs]
    return outputs


def _has_new_head(upcycled: Upcycled) -> bool:
    return any(not name.startswith("model.") and not name.endswith("bias") for name in upcycled.report.new)


def _difference(theirs: Tensor, ours: Tensor, real: Tensor) -> Difference:
    if theirs.ndim >= 2 and theirs.shape[:2] == real.shape:
        theirs, ours = theirs[real], ours[real]
    return Difference(float((theirs - ours).abs().max()), float(theirs.abs().max()))
