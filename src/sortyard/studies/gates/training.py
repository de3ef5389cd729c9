"""One cell of the study: an arm trained with a seed for a number of steps, scored and priced."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from sortyard.data.collate import Batch
from sortyard.evaluation.cost import forward_flops_per_token, head_flops_per_target, parameter_counts
from sortyard.objectives.total import Objective
from sortyard.studies.gates.arms import Trainee, build_arm
from sortyard.studies.gates.tasks import GateTask, Json
from sortyard.training.optimizer import build_optimizer
from sortyard.training.options import OptimizerOptions, ScheduleOptions
from sortyard.training.precision import Precision
from sortyard.training.schedule import lr_factor
from sortyard.training.step import Stepper

SCHEDULE = ScheduleOptions()
MAX_GRAD_NORM = 1.0
_LAST_STEPS = 20
_FORWARD_AND_BACKWARD = 3


def train_cell(task: GateTask, arm: str, *, seed: int, steps: int) -> Json:
    """Train an arm from its beginning and score it after the last step.

    Args:
        task: The task.
        arm: A key of `ARMS`.
        seed: Seed of weights and data.
        steps: Optimizer steps; the learning rate falls to 0 over them.

    Returns:
        The scores, the mean training loss of the last steps, the arm's parameters and arithmetic, and the seconds that
        training took: by the clock, and of the processor.

    Raises:
        ArithmeticError: a loss or gradient was not finite.
    """
    model = build_arm(arm, task.trainee, seed=seed)
    material = task.material(seed)
    clock, processor = time.perf_counter(), time.process_time()
    try:
        losses = take_steps(
            model,
            material.step,
            trainee=task.trainee,
            objective=task.objective,
            steps=steps,
            total_steps=steps,
            seed=seed,
        )
    except ArithmeticError as error:
        raise ArithmeticError(f"{task.name}, {arm}, seed {seed}: {error}") from error
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    last = losses[-_LAST_STEPS:]
    return {
        **material.evaluate(model),
        "training_loss": sum(last) / len(last),
        **cost_of(model, task.trainee),
        "seconds": round(clock, 2),
        "processor_seconds": round(processor, 2),
    }


def take_steps(
    model: Any,
    batches: Callable[[int], Sequence[Batch]],
    *,
    trainee: Trainee,
    objective: Objective,
    steps: int,
    total_steps: int,
    seed: int,
) -> list[float]:
    """Take the first steps of a run.

    Args:
        model: The model, in training mode.
        batches: Returns a step's micro-batches.
        trainee: Gives the learning rate.
        objective: What to minimise.
        steps: Steps to take.
        total_steps: Steps over which the learning rate falls.
        seed: The run's seed.

    Returns:
        The task's loss at every step.

    Raises:
        ArithmeticError: a loss or gradient was not finite.
    """
    optimizer = OptimizerOptions(lr=trainee.lr)
    stepper = Stepper(
        model=model,
        objective=objective,
        optimizer=build_optimizer(model, optimizer),
        precision=Precision("fp32", device=next(model.parameters()).device),
        max_grad_norm=MAX_GRAD_NORM,
        lr=lambda step: optimizer.lr * lr_factor(step, total_steps, SCHEDULE),
        seed=seed,
    )
    losses = []
    for step in range(steps):
        result = stepper.take(batches(step), step=step)
        if result.outcome != "updated":
            raise ArithmeticError(f"step {step + 1} of {total_steps}: loss or gradient is not finite")
        losses.append(result.task_loss)
    return losses


def settings() -> Json:
    """What all tasks train with, as JSON values."""
    return {
        "schedule": SCHEDULE.model_dump(),
        "optimizer": OptimizerOptions().model_dump(exclude={"lr"}),
        "max_grad_norm": MAX_GRAD_NORM,
    }


def cost_of(model: Any, trainee: Trainee) -> Json:
    """Count a model's parameters and estimate the arithmetic of a training step: three times a forward pass."""
    counts = parameter_counts(model)
    forward = trainee.batch_size * trainee.length * forward_flops_per_token(model, length=trainee.length)
    forward += trainee.predictions * head_flops_per_target(model)
    return {
        "parameters": counts.total,
        "active_parameters": counts.active,
        "flops_per_step": _FORWARD_AND_BACKWARD * forward,
    }
