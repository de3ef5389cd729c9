"""The sides of `bench experts`: equal active work, one routing for all, and a check that finds what is wrong."""

from dataclasses import replace

import pytest
import torch

from sortyard.studies.bench.experts_cases import ExpertCase, make_inputs
from sortyard.studies.bench.experts_check import deviation
from sortyard.studies.bench.experts_peers import gathered_bytes, plain_route
from sortyard.studies.bench.experts_sides import ExpertSide, find_sides

CASE = ExpertCase(
    length=40, dtype="fp32", direction="forward+backward", num_experts=6, num_experts_per_tok=3, hidden_size=32,
    intermediate_size=48, seed=0, device="cpu",
)  # fmt: skip


def test_a_tokens_experts_are_as_wide_as_the_dense_layer() -> None:
    inputs = make_inputs(CASE)
    up, down = inputs.dense.parameters()
    assert inputs.up.shape == (6, 16, 32)
    assert inputs.up[0].numel() * CASE.num_experts_per_tok == up.numel()
    assert inputs.down[0].numel() * CASE.num_experts_per_tok == down.numel()


def test_weights_do_not_depend_on_the_length_and_nothing_global_is_drawn() -> None:
    state = torch.random.get_rng_state()
    short, long, other = make_inputs(CASE), make_inputs(CASE.at(80)), make_inputs(replace(CASE, seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(short.up, long.up)
    assert torch.equal(short.gate, long.gate)
    assert not torch.equal(short.gate, other.gate)
    assert long.hidden.shape == (1, 80, 32)


def test_the_plain_router_chooses_and_weighs_as_ours() -> None:
    inputs = make_inputs(CASE)
    ours = inputs.layer.router(inputs.hidden, None, None, inputs.segments)
    experts, weights = plain_route(inputs.hidden[0], inputs.gate, num_experts_per_tok=3)
    by_expert, ours_by_expert = experts.sort(dim=1), ours.experts.sort(dim=1)
    assert torch.equal(by_expert.values, ours_by_expert.values)
    torch.testing.assert_close(weights.gather(1, by_expert.indices), ours.weights.gather(1, ours_by_expert.indices))


@pytest.mark.parametrize("leaf", ["hidden", "up", "down", "gate"])
def test_a_wrong_gradient_is_found(leaf: str) -> None:
    right = find_sides("cpu")["naive"]
    assert deviation(right, CASE).problem == ""

    def make(inputs, case):
        call, watched = right.make(inputs, case), getattr(inputs, leaf)
        # the same value, with a gradient that is not there
        return lambda: call() + 1e-3 * (watched.sum() - watched.sum().detach())

    wrong = ExpertSide("wrong", "", make)
    assert deviation(wrong, replace(CASE, direction="forward")).problem == ""
    assert deviation(wrong, CASE).problem.startswith("wrong result: off by ")


@pytest.mark.parametrize("leaf", ["hidden", "up", "down", "gate"])
def test_a_gradient_that_is_no_number_is_found(leaf: str) -> None:
    right = find_sides("cpu")["naive"]

    def make(inputs, case):
        call, watched = right.make(inputs, case), getattr(inputs, leaf)
        return lambda: call() + 0 * (watched - watched.detach()).sum().sqrt()  # 0, with the gradient 0 x infinity

    side = ExpertSide("wrong", "", make)
    assert deviation(side, replace(CASE, direction="forward")).problem == ""
    assert deviation(side, CASE).problem == "wrong result: not a number"


def test_a_wrong_dense_layer_is_found() -> None:
    dense = find_sides("cpu")["dense"]
    assert deviation(dense, CASE).problem == ""
    wrong = replace(dense, make=lambda inputs, _: lambda: inputs.dense(inputs.hidden * 1.01))
    assert deviation(wrong, CASE).problem.startswith("wrong result")


def test_the_batched_function_needs_a_matrix_for_each_copy() -> None:
    one = 32 * 16 * 4
    assert gathered_bytes(replace(CASE, direction="forward"), 4) == 2 * 40 * 3 * one
    assert gathered_bytes(CASE, 4) == 3 * 40 * 3 * one
