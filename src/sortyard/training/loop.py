"""The training loop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from signal import Signals
from typing import Any

from sortyard.data.batches import BatchSource
from sortyard.errors import InputError
from sortyard.objectives.total import Objective
from sortyard.parallel.mesh import is_first
from sortyard.parallel.options import ONE_PROCESS, ParallelOptions
from sortyard.runs.folder import RunFolder
from sortyard.runs.lock import run_lock
from sortyard.runs.progress import Progress
from sortyard.runs.trackers import check_trackers
from sortyard.stop_requests import StopSignals
from sortyard.training.efficiency import TokenFlops
from sortyard.training.opening import open_recorder, open_session, open_watch
from sortyard.training.options import LoopOptions, OptimizerOptions, ScheduleOptions
from sortyard.training.recorder import Records
from sortyard.training.schedule import lr_factor
from sortyard.training.session import Session
from sortyard.training.state import TrainState
from sortyard.training.step import Stepper, StepResult

Evaluate = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        state: where it stands.
        was_finished: whether the run was complete before this call, which then did nothing.
    """

    state: TrainState
    was_finished: bool


def train(
    model: Any,
    *,
    source: BatchSource,
    objective: Objective,
    loop: LoopOptions,
    optimizer: OptimizerOptions,
    schedule: ScheduleOptions,
    run: RunFolder,
    seed: int,
    evaluate: Evaluate | None = None,
    best_metric: str | None = None,
    progress: Progress | None = None,
    parallel: ParallelOptions = ONE_PROCESS,
    flops: TokenFlops | None = None,
) -> TrainResult:
    """Train a model, or go on with a run that was interrupted.

    A resumed run ends with the same bits as an uninterrupted one on the same torch, threads and device: batches and
    dropout are functions of the seed and the step, and a checkpoint holds everything else.

    Args:
        model: a head of sortyard.model as built for this run's first step; checkpoints replace its weights.
        source: the training data.
        objective: what to minimise.
        loop: how long, in what portions, what to write.
        optimizer: AdamW's settings.
        schedule: the learning rate over the steps.
        run: the run's folder; its newest good checkpoint, if any, is where training goes on.
        seed: seed of dropout.
        evaluate: measures the model, which it gets in evaluation mode and without gradients.
        best_metric: which of its figures decides about the best weights and early stopping; names ending in loss,
            perplexity or error are better when lower.
        progress: the display; None shows nothing.
        parallel: the layout, where several processes have met (`sortyard.parallel.mesh.join_processes`) and make this
            call together; it changes nothing of what is computed.
        flops: arithmetic of one token of this data, for the metrics; None leaves out what follows from it.

    Returns:
        How the run ended; the model holds the exported weights (of several processes, the first one's).

    Raises:
        InputError: the options do not fit together, the loss stays non-finite, files cannot be used, or another process
            is training in the same folder.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
        SystemExit: SIGTERM, after a checkpoint; its code is 143.
    """
    if (loop.keep_best or loop.early_stopping_patience) and (evaluate is None or best_metric is None):
        raise InputError("keep_best and early_stopping_patience need evaluation data: turn them off, or give some")
    if is_first():
        check_trackers(loop.trackers)
    display = progress or Progress()
    with run_lock(run.path) if is_first() else nullcontext(), open_watch(run, parallel) as watch:
        watch.beat("meeting the others")
        session = open_session(
            model,
            objective=objective,
            loop=loop,
            optimizer=optimizer,
            run=run,
            display=display,
            parallel=parallel,
            watch=watch,
        )
        watch.beat("loading the checkpoint", limited=False)
        was_resumed = session.restore(run)
        state, total = session.state, loop.total_steps(source.steps_per_epoch)
        is_over = state.is_out_of_patience(loop) or bool(_reason_to_finish(state, total=total, loop=loop))
        if not is_over:  # as the recipe was changed, and asks for more
            state.finished = ""
        if state.finished:
            session.finish(run, keep_best=loop.keep_best)
            where = f"{run.path} finished at step {state.step} ({state.finished})"
            display.message(f"{where}: there is nothing left to do")
            return TrainResult(state, was_finished=True)

        recorder = Records()
        if is_first():
            recorder = open_recorder(
                session, run, loop=loop, display=display, parallel=parallel, source=source, flops=flops
            )
        stepper = session.stepper(
            objective=objective,
            max_grad_norm=loop.max_grad_norm,
            lr=lambda step: optimizer.lr * lr_factor(step, total, schedule),
            seed=seed,
        )
        with _recorded(recorder, state, run):
            display.start(total=total, done=state.step)
            recorder.event("resume" if was_resumed else "start", step=state.step, total_steps=total)
            for note in session.notes:
                recorder.warn(note, step=state.step)
            _run(session, recorder, run, source, stepper, evaluate=evaluate, best_metric=best_metric, loop=loop)
        return TrainResult(state, was_finished=False)


def _run(
    session: Session,
    recorder: Records,
    run: RunFolder,
    source: BatchSource,
    stepper: Stepper,
    *,
    evaluate: Evaluate | None,
    best_metric: str | None,
    loop: LoopOptions,
) -> None:
    """The loop itself: fetch, step, evaluate, record, save."""
    state, total = session.state, loop.total_steps(source.steps_per_epoch)
    with StopSignals() as signals, session.store:
        while not state.finished:
            started, result = time.perf_counter(), None
            if not state.is_pending:
                session.watch.beat(f"reading the rows of step {state.step + 1}", alone=True)
                rows = source.step(state.step, share=session.share)
                session.watch.beat(f"computing step {state.step + 1}")
                result = stepper.take(rows, step=state.step)
            seconds, stop, memory = session.agree(seconds=time.perf_counter() - started, signal=signals.received)
            if result is not None:
                state.advance(result, seconds=seconds)
                _report_trouble(result, state, source=source, loop=loop, recorder=recorder)
            reason = _reason_to_finish(state, total=total, loop=loop)

            session.watch.beat(f"evaluating, recording or saving after step {state.step}", limited=False)
            is_best = False
            if evaluate is not None and (reason or _is_due(state.step, loop.eval_every)):
                if reason and not state.is_pending:  # an evaluation that fails must not cost the training
                    state.is_pending = True
                    session.save(run)
                metrics = session.measure(evaluate)
                recorder.evaluation(metrics, step=state.step)
                is_best = best_metric is not None and state.note_evaluation(metrics, best_metric, loop=loop)
            state.is_pending, state.finished = False, reason or state.finished
            is_line_due = bool(state.finished) or _is_due(state.step, loop.log_every)
            recorder.step(state, lr=stepper.lr(state.step - 1), memory=memory, is_due=is_line_due)

            is_save_due = _is_due(state.step, loop.checkpoint_every) or (is_best and loop.keep_best)
            if is_save_due or stop or state.finished:
                session.save(run)
            if stop and not state.finished:
                session.store.wait()
                recorder.event("stop", step=state.step, signal=Signals(stop).name)
                recorder.say(f"stopped at step {state.step}; continue with `sortyard resume {run.path}`")
                signals.leave(stop)
        session.finish(run, keep_best=loop.keep_best)
        # All agree on what came meanwhile: who starts processes ends the others when one leaves like this.
        _, stop, _ = session.agree(seconds=0.0, signal=signals.received or stop)
        if stop:
            signals.leave(stop)


@contextmanager
def _recorded(recorder: Records, state: TrainState, run: RunFolder) -> Iterator[None]:
    """Write an error to the events, and turn one of the file system into a message; close the records in any case."""
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # a full disk must not hide the error
            recorder.event("error", step=state.step, message=str(error))
        if not isinstance(error, OSError):
            raise
        path = run.path
        raise InputError(
            f"{error.filename or path}: {error.strerror or error}; training broke off after step {state.step}. "
            f"Mend that, then continue with `sortyard resume {path}`"
        ) from error
    finally:
        recorder.close()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _reason_to_finish(state: TrainState, *, total: int, loop: LoopOptions) -> str:
    if state.step >= total:
        return "steps"
    return "max_seconds" if loop.max_seconds and state.seconds >= loop.max_seconds else ""


def _report_trouble(
    result: StepResult, state: TrainState, *, source: BatchSource, loop: LoopOptions, recorder: Records
) -> None:
    """Warn about a step without an update; give up after too many bad ones in a row."""
    if result.outcome == "updated":
        return
    first = (state.step - 1) * source.samples_per_step
    where = f"step {state.step} (samples {first} to {first + source.samples_per_step - 1} in the run's order)"
    what = {
        "no_targets": "no token or sample has a label",
        "overflow": "the float16 gradient overflowed and the loss scale was lowered",
        "bad": "the gradient is not finite"
        if result.bad_micro_batch < 0
        else f"the loss of micro-batch {result.bad_micro_batch} is not finite",
    }[result.outcome]
    recorder.warn(f"{where}: {what}; the weights stay as they are", step=state.step)
    if state.bad_steps >= loop.max_bad_steps:
        raise InputError(
            f"{where}: {what}, as in the {state.bad_steps - 1} steps before (max_bad_steps is {loop.max_bad_steps}): "
            "look at these samples, lower lr, or train in fp32 or bf16"
        )
