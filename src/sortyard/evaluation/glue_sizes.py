"""How many examples the official GLUE splits have, so that a score from a part of one is known for what it is."""

from sortyard.data.glue import TASKS

# Source: the GLUE data sets as nyu-mll/glue publishes them; MNLI's development set is the matched one.
OFFICIAL_TRAIN = {
    "cola": 8_551,
    "sst2": 67_349,
    "mrpc": 3_668,
    "stsb": 5_749,
    "qqp": 363_846,
    "mnli": 392_702,
    "qnli": 104_743,
    "rte": 2_490,
    "wnli": 635,
}
OFFICIAL_DEV = {
    "cola": 1_043,
    "sst2": 872,
    "mrpc": 408,
    "stsb": 1_500,
    "qqp": 40_430,
    "mnli": 9_815,
    "qnli": 5_463,
    "rte": 277,
    "wnli": 71,
}
TOLERANCE = 0.01  # a copy that lost a few rows is still the data set

assert set(OFFICIAL_TRAIN) == set(OFFICIAL_DEV) == set(TASKS)


def part_of(count: int, *, official: int) -> float | None:
    """Return which share of an official split some examples are, 0 to 1; None where they are all of it.

    Args:
        count: examples there are.
        official: examples of the official split.
    """
    return None if count >= official * (1 - TOLERANCE) else count / official
