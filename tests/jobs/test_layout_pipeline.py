"""Bubbles and micro-batches in flight against torch's own tables, played action by action."""

from typing import Any

import pytest
from torch.distributed.pipelining import schedules

from sortyard.errors import InputError
from sortyard.jobs.layouts.pipeline import check_schedule, in_flight
from sortyard.parallel.options import ONE_STAGE, Schedule, bubble_share

TABLES = {
    "gpipe": schedules.ScheduleGPipe,
    "interleaved_1f1b": schedules.ScheduleInterleaved1F1B,
    "interleaved_zero_bubble": schedules.ScheduleInterleavedZeroBubble,
    "zbv_zero_bubble": schedules.ScheduleZBVZeroBubble,
}
SIZES = [(2, 3), (2, 8), (3, 7), (3, 9), (4, 7), (4, 8), (4, 16), (8, 16), (8, 32)]
Action = tuple[int, str, int]


def torch_table(schedule: Schedule, *, pp: int, micro_batches: int) -> list[list[Action]]:
    if schedule == "1f1b":  # torch keeps no usable table of this one; its loop does this
        return [one_forward_one_backward(rank, pp=pp, micro_batches=micro_batches) for rank in range(pp)]
    table: Any = TABLES[schedule].__new__(TABLES[schedule])
    table.pp_group_size, table._n_microbatches, table.n_local_stages = pp, micro_batches, 2
    table._num_stages = pp if schedule == "gpipe" else 2 * pp
    table.num_stages = table._num_stages
    table.number_of_rounds = max(1, micro_batches // pp)
    table.microbatches_per_round = micro_batches // table.number_of_rounds
    order = table._get_pipeline_order() if schedule == "gpipe" else None
    found = [order[rank] if order else table._calculate_single_rank_operations(rank) for rank in range(pp)]
    return [[tuple(a)[:3] for a in actions if a is not None and a.microbatch_index is not None] for actions in found]


def one_forward_one_backward(rank: int, *, pp: int, micro_batches: int) -> list[Action]:
    ahead = min(micro_batches, pp - rank)
    actions: list[Action] = [(rank, "F", micro) for micro in range(ahead)]
    for micro in range(micro_batches):
        actions.append((rank, "B", micro))
        if micro + ahead < micro_batches:
            actions.append((rank, "F", micro + ahead))
    return actions


def play(actions: list[list[Action]], *, stages: int, recomputes: bool) -> tuple[float, list[int]]:
    """The share of the time that the busiest process waits, and how many passes each holds at most."""
    seconds = {"F": 1.0, "I": 2.0 if recomputes else 1.0, "W": 1.0}
    seconds["B"] = seconds["I"] + seconds["W"]
    pp, done = len(actions), {}
    clock, busy, place, held, most = ([0.0] * pp, [0.0] * pp, [0] * pp, [0] * pp, [0] * pp)
    while any(place[rank] < len(actions[rank]) for rank in range(pp)):
        before = sum(place)
        for rank in range(pp):
            while place[rank] < len(actions[rank]):
                stage, word, micro = actions[rank][place[rank]]
                kind = str(getattr(word, "value", word))
                needs = {
                    "F": [(stage - 1, "F", micro)] if stage else [],
                    "W": [(stage, "I", micro)],
                }.get(kind, [(stage, "F", micro)] + ([(stage + 1, "I", micro)] if stage < stages - 1 else []))
                if any(need not in done for need in needs):
                    break
                took = seconds[kind] * pp / stages
                clock[rank] = max([clock[rank], *(done[need] for need in needs)]) + took
                busy[rank] += took
                done[(stage, "I" if kind == "B" else kind, micro)] = clock[rank]
                held[rank] += {"F": 1, "B": -1, "W": -1}.get(kind, 0)
                most[rank] = max(most[rank], held[rank])
                place[rank] += 1
        assert sum(place) > before, "the table does not go on"
    return 1 - max(busy) / max(clock), most


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("schedule", ["1f1b", *TABLES])
def test_formulas_are_what_torchs_tables_do(schedule: Schedule, recomputes: bool) -> None:
    tried = 0
    for pp, micro_batches in SIZES:
        try:
            check_schedule(schedule, pp=pp, micro_batches=micro_batches)
        except InputError:
            continue
        table = torch_table(schedule, pp=pp, micro_batches=micro_batches)
        waits, held = play(table, stages=pp if schedule in ONE_STAGE else 2 * pp, recomputes=recomputes)
        share = bubble_share(schedule, pp=pp, micro_batches=micro_batches, recomputes=recomputes)
        assert share == pytest.approx(waits, abs=1e-12), (pp, micro_batches)
        assert [in_flight(schedule, rank=rank, pp=pp, micro_batches=micro_batches) for rank in range(pp)] == held
        tried += 1
    assert tried >= 6


def test_bubbles_by_hand() -> None:
    assert bubble_share("1f1b", pp=4, micro_batches=8) == pytest.approx(3 / 11)
    assert bubble_share("gpipe", pp=4, micro_batches=8) == pytest.approx(3 / 11)
    assert bubble_share("interleaved_1f1b", pp=4, micro_batches=8) == pytest.approx(3 / 19)
    assert bubble_share("zbv_zero_bubble", pp=4, micro_batches=8) == pytest.approx(3 / 51)
    assert bubble_share("1f1b", pp=1, micro_batches=8) == 0


@pytest.mark.parametrize(
    ("schedule", "pp", "micro_batches"),
    [("1f1b", 4, 3), ("interleaved_1f1b", 4, 9), ("interleaved_zero_bubble", 3, 7), ("zbv_zero_bubble", 4, 6)],
)
def test_too_few_micro_batches_are_refused(schedule: Schedule, pp: int, micro_batches: int) -> None:
    with pytest.raises(InputError, match=f"accumulation_steps {micro_batches} "):
        check_schedule(schedule, pp=pp, micro_batches=micro_batches)
