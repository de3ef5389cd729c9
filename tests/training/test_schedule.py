import pytest

from sortyard.training.options import ScheduleOptions
from sortyard.training.schedule import lr_factor

NAMES = ["linear", "cosine", "wsd", "constant"]


def factors(total, **options):
    return [lr_factor(step, total, ScheduleOptions(**options)) for step in range(total)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5])
def test_stays_between_0_and_1_and_warms_up_evenly(name, total, ratio):
    values = factors(total, name=name, warmup_ratio=ratio)
    warmup = round(ratio * total)
    assert values[:warmup] == [pytest.approx((step + 1) / warmup) for step in range(warmup)]
    assert all(0 < value <= 1 for value in values)
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_may_fill_the_run(name):
    assert factors(4, name=name, warmup_ratio=1.0, decay_ratio=0.0) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_ends_at_the_least_rate(name):
    options = ScheduleOptions(name=name, min_lr_ratio=0.1)
    assert lr_factor(100, 100, options) == pytest.approx(0.1)
    assert lr_factor(99, 100, options) > 0.1


def test_wsd_is_flat_then_falls():
    values = factors(10, name="wsd", warmup_ratio=0.2, decay_ratio=0.3)
    assert values == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_wsd_without_decay_is_constant():
    assert factors(5, name="wsd", warmup_ratio=0.0, decay_ratio=0.0) == [1.0] * 5


def test_cosine_is_half_way_in_the_middle():
    assert lr_factor(50, 100, ScheduleOptions(name="cosine", warmup_ratio=0.0)) == pytest.approx(0.5)
