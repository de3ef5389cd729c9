"""Several sides of one comparison timed fairly: alternated runs in one process, medians, ratios of neighbours."""

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

Call = Callable[[], object]
Clock = Callable[[], float]
Failed = Callable[[str, Exception], None]


def _nothing() -> None:
    return None


def wall_clock() -> float:
    """Seconds of the wall since some moment."""
    return time.perf_counter()


@dataclass(frozen=True)
class Ratio:
    """How many times one side's seconds go into another's.

    Attributes:
        median: Median over the rounds.
        low: Smallest ratio of a round.
        high: Largest ratio of a round.
    """

    median: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        """Return the three numbers as JSON values."""
        return asdict(self)


def alternate(
    calls: Mapping[str, Call],
    *,
    repetitions: int,
    warmup: int = 1,
    patience_seconds: float = math.inf,
    seconds: float = math.inf,
    no_warmup: Collection[str] = (),
    synchronise: Call = _nothing,
    on_failure: Failed | None = None,
    clock: Clock = wall_clock,
) -> dict[str, list[float]]:
    """Time calls in turn: a round runs every side once, so that a change of the machine's load meets them all.

    Args:
        calls: The sides by name; each call does the whole work once.
        repetitions: Measured rounds, at least 1.
        warmup: Rounds that run first and do not count, at least 0.
        patience_seconds: A side whose measured runs add up to more is not repeated; it has one run at least.
        seconds: A round that would end later than so many seconds from now, were it as long as the one before, does
            not begin; one round is measured at least.
        no_warmup: Sides that run no warm-up round, for instance because one run takes a minute.
        synchronise: Waits until the device has finished; runs before and after each call.
        on_failure: Takes the name and the error of a side that fails, which is then left out. If it is left out,
            the error is raised.
        clock: Tells the seconds of a call, such as `time.process_time` for one thread on a machine that others use too.

    Returns:
        Seconds of every measured call by name, in the order of the rounds; no entry for a side that failed.

    Raises:
        ValueError: repetitions or warmup is too small.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}; it must be at least 1")
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}; it must be at least 0")
    runs: dict[str, list[float]] = {name: [] for name in calls}
    begun = round_ended = time.perf_counter()
    round_seconds = 0.0
    for turn in range(-warmup, repetitions):
        if turn > 0 and round_ended - begun + round_seconds > seconds:
            break
        for name in [name for name in runs if _is_due(runs[name], patience_seconds)]:
            if turn < 0 and name in no_warmup:
                continue
            try:
                taken = _timed(calls[name], synchronise, clock)
            except Exception as error:
                if on_failure is None:
                    raise
                on_failure(name, error)
                del runs[name]
                continue
            if turn >= 0:
                runs[name].append(taken)
        round_begun, round_ended = round_ended, time.perf_counter()
        round_seconds = round_ended - round_begun
    return runs


def ratio_of(base: Sequence[float], own: Sequence[float]) -> Ratio:
    """How many times faster `own` is than `base`: the median and range over the rounds.

    Where one side was timed less often, its last run stands in for the missing ones.

    Args:
        base: Seconds of the side to compare with, at least one.
        own: Seconds of the side in question, at least one.

    Returns:
        The ratio; above 1 means that `own` is faster.
    """
    rounds = range(max(len(base), len(own)))
    ratios = [base[min(i, len(base) - 1)] / own[min(i, len(own) - 1)] for i in rounds]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def reason_of(error: Exception) -> str:
    """Write an error in one line: its kind and its first two lines, as torch's compiler names the cause in the second.

    Args:
        error: The error.

    Returns:
        The line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, " ".join(lines[:2])])


def _is_due(seconds: Sequence[float], patience_seconds: float) -> bool:
    return not seconds or sum(seconds) <= patience_seconds


def _timed(call: Call, synchronise: Call, clock: Clock) -> float:
    synchronise()
    start = clock()
    call()
    synchronise()
    return clock() - start
