"""How many optimizer steps fit into a time, measured before a run begins, so that its learning rate ends with it."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sortyard.training.options import LoopOptions

if TYPE_CHECKING:
    import torch

REPEATS = 3
SHARE = 0.8  # what the optimizer, the fetching of rows and a slower moment of the machine leave
LABELLED = 3  # every third token


def fitting_steps(model: Any, *, objective: Any, loop: LoopOptions, length: int) -> int:
    """Times forward and backward passes over random tokens; the weights stay as they are.

    Args:
        model: A sortyard model on the device to train on.
        objective: What is to be minimised.
        loop: Its `max_seconds` is the time; batch sizes and precision as they will be.
        length: Tokens of a row, which is one unbroken sequence here.

    Returns:
        Optimizer steps, at least 1.
    """
    import torch

    from sortyard.training.precision import Precision

    batch = _random_rows(model, rows=loop.micro_batch_size, length=length)
    precision = Precision(loop.precision, device=model.device)
    was_training = model.training
    model.train()
    with torch.random.fork_rng(devices=[]):
        seconds = list(_times(model, objective=objective, batch=batch, precision=precision, limit=loop.max_seconds))
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return max(1, int(SHARE * loop.max_seconds / (min(seconds) * loop.accumulation_steps)))


def _times(
    model: Any, *, objective: Any, batch: "dict[str, torch.Tensor]", precision: Any, limit: float
) -> Iterator[float]:
    """Yields the seconds of each pass, no more of them than a tenth of the limit allows; the first is a warm-up."""
    begun = time.perf_counter()
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        with precision.autocast():
            loss = objective.compute(model, batch, num_targets=objective.count_targets(batch))
        loss.total.backward()
        float(loss.task)  # waits for a GPU
        yield time.perf_counter() - started
        if time.perf_counter() - begun > limit / 10:
            return


def _random_rows(model: Any, *, rows: int, length: int) -> "dict[str, torch.Tensor]":
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)
    labels = torch.where(torch.arange(length) % LABELLED == 0, ids, torch.full_like(ids, -100))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: value.to(model.device) for name, value in batch.items()}
