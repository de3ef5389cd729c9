"""The learning rate as a pure function of the step."""

import math

from sortyard.training.options import ScheduleOptions


def lr_factor(step: int, total_steps: int, options: ScheduleOptions) -> float:
    """Share of the highest learning rate that a step uses.

    The warm-up rises in equal parts and reaches 1 with its last step, so no step is spent at rate 0; a decay
    reaches `min_lr_ratio` right after the last step.

    Args:
        step: the step to take, from 0 to total_steps - 1.
        total_steps: optimizer steps of the whole run, at least 1.
        options: the schedule.

    Returns:
        A factor between 0 and 1.
    """
    warmup = round(options.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if options.name == "constant":
        return 1.0
    start = warmup if options.name != "wsd" else max(warmup, total_steps - round(options.decay_ratio * total_steps))
    if step <= start:
        return 1.0
    progress = min(1.0, (step - start) / (total_steps - start))
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if options.name == "cosine" else 1 - progress
    return options.min_lr_ratio + (1 - options.min_lr_ratio) * remaining
