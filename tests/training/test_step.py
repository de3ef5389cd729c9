import math

import pytest
import torch

from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.training.optimizer import build_optimizer, parameter_groups
from sortyard.training.options import OptimizerOptions
from sortyard.training.precision import Precision
from sortyard.training.step import Stepper
from tests.training.tiny import TinyModel, TinySource


def make_stepper(model, *, precision="fp32", max_grad_norm=0.0):
    return Stepper(
        model,
        objective=MaskedLMObjective(),
        optimizer=build_optimizer(model, OptimizerOptions(lr=0.01)),
        precision=Precision(precision, device=torch.device("cpu")),
        max_grad_norm=max_grad_norm,
        lr=lambda step: 0.01,
        seed=0,
    )


def joined(micro_batches):
    return {name: torch.cat([batch[name] for batch in micro_batches]) for name in micro_batches[0]}


def gradients_of(monkeypatch, model, micro_batches):
    """Gradients of a step, taken just before the update."""
    stepper, seen = make_stepper(model), {}
    collect = lambda: seen.update({name: p.grad.clone() for name, p in model.named_parameters()})  # noqa: E731
    monkeypatch.setattr(stepper.optimizer, "step", lambda *_: collect())
    result = stepper.take(micro_batches, step=0)
    return seen, result


def test_eight_micro_batches_equal_one_large_batch(monkeypatch):
    micro_batches = TinySource(micro_batches=8, rows=4).step(0)
    counts = {int((batch["labels"] != -100).sum()) for batch in micro_batches}
    assert len(counts) > 4, "the test needs unequal numbers of targets"
    model = TinyModel(dropout=0.0, balance_coef=0.0).double()
    parts, result = gradients_of(monkeypatch, model, micro_batches)
    whole, expected = gradients_of(
        monkeypatch, TinyModel(dropout=0.0, balance_coef=0.0).double(), [joined(micro_batches)]
    )
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-12)
    assert result.task_loss == pytest.approx(expected.task_loss, abs=1e-12)
    assert result.num_tokens == expected.num_tokens == 8 * 4 * 12
    assert torch.equal(result.expert_loads, expected.expert_loads)


def test_dropout_depends_on_nothing_but_seed_step_and_micro_batch():
    micro_batches = TinySource().step(0)
    results = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        results.append(make_stepper(TinyModel()).take(micro_batches, step=3))
    other = make_stepper(TinyModel()).take(micro_batches, step=4)
    assert results[0].task_loss == results[1].task_loss != other.task_loss


@pytest.mark.parametrize("micro", [0, 1])
def test_nan_loss_leaves_everything_untouched(micro):
    model, micro_batches = TinyModel(), TinySource().step(0)
    stepper = make_stepper(model, max_grad_norm=1.0)
    stepper.take(micro_batches, step=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [value.clone() for state in stepper.optimizer.state.values() for value in state.values()]
    model.poison = {model.num_forwards + micro}
    result = stepper.take(micro_batches, step=1)
    assert (result.outcome, result.bad_micro_batch) == ("bad", micro)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    after = [value for state in stepper.optimizer.state.values() for value in state.values()]
    assert all(map(torch.equal, moments, after))
    assert stepper.take(micro_batches, step=2).outcome == "updated"


def test_infinite_gradient_with_a_finite_loss_is_bad(monkeypatch):
    model = TinyModel()
    model.experts.register_hook(lambda gradient: gradient * math.inf)
    result = make_stepper(model).take(TinySource().step(0), step=0)
    assert (result.outcome, result.bad_micro_batch) == ("bad", -1)


def test_fp16_overflow_lowers_the_scale_until_it_can_no_longer_be_the_cause():
    model = TinyModel()
    stepper = make_stepper(model, precision="fp16")
    handle = model.experts.register_hook(lambda gradient: gradient * math.inf)
    before = model.experts.detach().clone()
    outcomes = [stepper.take(TinySource().step(0), step=step).outcome for step in range(20)]
    assert outcomes == ["overflow"] * 16 + ["bad"] * 4
    assert stepper.precision.loss_scale() == 1
    assert torch.equal(before, model.experts)
    handle.remove()
    assert stepper.take(TinySource().step(0), step=20).outcome == "updated"
    assert not torch.equal(before, model.experts)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_mixed_precision_comes_close_to_float32(name):
    results = [make_stepper(TinyModel(), precision=each).take(TinySource().step(0), step=0) for each in ("fp32", name)]
    assert results[1].outcome == "updated"
    assert results[1].task_loss == pytest.approx(results[0].task_loss, rel=0.02)
    assert results[1].grad_norm == pytest.approx(results[0].grad_norm, rel=0.05)


def test_float16_can_take_over_from_a_format_without_a_loss_scale():
    precision = Precision("fp16", device=torch.device("cpu"))
    precision.load_state(Precision("fp32", device=torch.device("cpu")).state())
    assert precision.loss_scale() > 1


def test_step_without_targets_is_no_update():
    model = TinyModel()
    before = model.experts.detach().clone()
    result = make_stepper(model).take(TinySource(without_targets=(0,)).step(0), step=0)
    assert result.outcome == "no_targets"
    assert result.num_tokens == 2 * 3 * 12
    assert torch.equal(before, model.experts)


def test_clipping_limits_the_norm(monkeypatch):
    model = TinyModel()
    stepper = make_stepper(model, max_grad_norm=0.1)
    norms = []
    measure = lambda *_: norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))  # noqa: E731
    monkeypatch.setattr(stepper.optimizer, "step", measure)
    result = stepper.take(TinySource().step(0), step=0)
    assert result.grad_norm > 0.1
    assert float(norms[0]) == pytest.approx(0.1, rel=1e-4)


def test_selection_bias_moves_once_a_step():
    model = TinyModel()
    make_stepper(model).take(TinySource(micro_batches=4).step(0), step=0)
    assert model.selection_bias.abs().max() == pytest.approx(1e-3)


def test_decay_spares_biases_norms_and_embeddings():
    model = TinyModel()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = parameter_groups(model, weight_decay=0.1)
    assert {names[id(parameter)] for parameter in decayed["params"]} == {"gate.weight", "experts"}
    assert spared["weight_decay"] == 0.0
    assert len(spared["params"]) == len(names) - 2
