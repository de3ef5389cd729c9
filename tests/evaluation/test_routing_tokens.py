"""Pieces that mark an expert."""

import math

import numpy as np
import pytest

from sortyard.evaluation.routing_tokens import token_lifts


def test_lifts_of_a_table_worked_out_by_hand() -> None:
    #                 piece 0  1  2  3
    counts = np.array([[6, 2, 0, 0], [2, 2, 0, 4]])
    first, second = token_lifts(counts, limit=4)
    assert [(one.token, one.copies) for one in first] == [(0, 6)]  # piece 1 is 1/4 of both, so it marks nobody
    assert first[0].lift == pytest.approx((6 / 8) / (8 / 16))
    assert [(one.token, one.copies, one.lift) for one in second] == [(3, 4, pytest.approx((4 / 8) / (4 / 16)))]


def test_a_frequent_piece_comes_before_a_rare_one_of_greater_lift() -> None:
    counts = np.array([[50, 1, 49], [20, 0, 180]])
    marks = token_lifts(counts, limit=3)[0]
    assert [one.token for one in marks] == [0, 1]
    assert marks[1].lift > marks[0].lift
    weights = [one.copies / 100 * math.log(one.lift) for one in marks]
    assert weights == sorted(weights, reverse=True)


def test_an_idle_expert_has_no_pieces_and_the_limit_holds() -> None:
    counts = np.random.default_rng(0).integers(0, 9, size=(3, 50))
    counts[1] = 0
    marks = token_lifts(counts, limit=4)
    assert [len(one) for one in marks] == [4, 0, 4]
    assert all(mark.lift > 1 for one in marks for mark in one)


def test_experts_that_get_the_same_text_are_marked_by_nothing() -> None:
    assert token_lifts(np.tile([3, 5, 2], (4, 1)), limit=3) == ((), (), (), ())
