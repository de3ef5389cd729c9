"""The gate study's parts: arms that differ in the gate alone, what is counted, and what is concluded."""

import numpy as np
import pytest
import torch
from scipy import stats

from sortyard.evaluation.routing import mutual_information
from sortyard.model.experts.layer import ExpertLayer
from sortyard.model.experts.routing import RoutingRecord
from sortyard.studies.gates import training
from sortyard.studies.gates.arms import ARMS, CONTEXT, build_arm
from sortyard.studies.gates.forecast import duration_text, expected_seconds
from sortyard.studies.gates.gates_page import gain_text
from sortyard.studies.gates.latent_mode import (
    CLASSES,
    MODES,
    TRAINEE,
    LatentModes,
    LatentModeTask,
    learner,
    score_tokens,
    settings,
)
from sortyard.studies.gates.pairing import paired_gain
from sortyard.studies.gates.summary import summarise
from sortyard.studies.gates.tasks import Material
from sortyard.studies.gates.training import cost_of, train_cell
from sortyard.studies.gates.watching import ExpertWatch, watch_experts

EXPERT_ARMS = [arm for arm in ARMS if not arm.startswith("dense")]


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != CONTEXT])
def test_arms_begin_with_the_same_weights(arm: str) -> None:
    context, other = (dict(build_arm(name, TRAINEE, seed=3).named_parameters()) for name in (CONTEXT, arm))
    shared = [name for name in other if name in context and not name.endswith("router.gate")]
    assert len(shared) >= 8  # embeddings, attention, norms, classifier
    assert all(torch.equal(context[name], other[name]) for name in shared)
    for name in other.keys() & {name for name in context if name.endswith("router.gate")}:
        assert torch.equal(other[name], context[name][:, : other[name].shape[1]])


def test_seeds_begin_differently() -> None:
    first, second = (build_arm("static", TRAINEE, seed=seed).classifier.weight for seed in (0, 1))
    assert not torch.equal(first, second)


def test_the_arms_route_as_they_say() -> None:
    batch = LatentModes.of(0).held_out(0)[0]
    del batch["labels"]
    chosen = {}
    for arm in EXPERT_ARMS:
        model = build_arm(arm, TRAINEE, seed=0).eval()
        (layer,) = [module for module in model.modules() if isinstance(module, ExpertLayer)]
        records: list[RoutingRecord] = []
        layer.register_forward_hook(lambda *call, records=records: records.append(call[2][1]))
        with torch.no_grad():
            model(**batch)
        chosen[arm] = records[0].experts
    assert len({tuple(experts.flatten().tolist()) for experts in chosen.values()}) == len(EXPERT_ARMS)
    ids = batch["input_ids"].flatten()
    assert all(len(chosen["token-hash"][ids == token].unique(dim=0)) == 1 for token in ids.unique())
    assert any(len(chosen[CONTEXT][ids == token].unique(dim=0)) > 1 for token in ids.unique())


def test_the_frozen_gate_does_not_learn_and_the_others_do() -> None:
    for arm in (CONTEXT, "frozen-random"):
        model = build_arm(arm, TRAINEE, seed=0)
        batch = LatentModes.of(0).training_batch(0)[0]
        model(**batch).loss.backward()
        gates = [tensor for name, tensor in model.named_parameters() if name.endswith("router.gate")]
        assert [bool(gate.grad.abs().sum() > 0) for gate in gates] == ([True] if arm == CONTEXT else [])


def test_dense_layers_are_as_wide_as_the_experts_they_stand_for() -> None:
    costs = {arm: cost_of(build_arm(arm, TRAINEE, seed=0), TRAINEE) for arm in ARMS}
    hidden, options = TRAINEE.options.hidden_size, TRAINEE.options
    gate = options.num_experts * 2 * hidden
    context = costs[CONTEXT]
    assert costs["dense-total"]["parameters"] == context["parameters"] - gate
    assert costs["dense-active"]["parameters"] == context["active_parameters"] - gate
    assert costs["static"]["parameters"] == context["parameters"] - gate // 2
    tokens = TRAINEE.batch_size * TRAINEE.length
    assert context["flops_per_step"] - costs["dense-active"]["flops_per_step"] == 3 * 2 * tokens * gate
    assert costs["dense-total"]["flops_per_step"] > 2 * context["flops_per_step"]


def test_documents_follow_their_mode() -> None:
    modes = LatentModes.of(4)
    batch, kinds = modes.held_out(0)
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    is_word = labels != -100
    expected = modes.meaning[kinds.numpy()[:, None].repeat(ids.shape[1], axis=1)[is_word], ids[is_word] - 1]
    assert (labels[is_word] == expected).all()
    assert ((ids - 33)[~is_word] == kinds.numpy()[:, None].repeat(ids.shape[1], axis=1)[~is_word]).all()
    assert 0.08 < (~is_word).mean() < 0.12
    assert (ids[is_word] >= 1).all()
    assert (ids[is_word] <= 32).all()


def test_data_depend_on_the_seed_and_the_step_alone() -> None:
    first, again, other = LatentModes.of(1), LatentModes.of(1), LatentModes.of(2)
    assert torch.equal(first.training_batch(7)[0]["input_ids"], again.training_batch(7)[0]["input_ids"])
    assert not torch.equal(first.training_batch(7)[0]["input_ids"], first.training_batch(8)[0]["input_ids"])
    assert not torch.equal(first.training_batch(0)[0]["input_ids"], first.held_out(0)[0]["input_ids"][:16])
    assert (first.meaning != other.meaning).any()


def test_the_ceiling_is_that_of_the_most_frequent_class() -> None:
    meaning = np.zeros((MODES, 2), dtype=np.int64)
    meaning[:, 1] = np.arange(MODES) % CLASSES
    assert LatentModes(0, meaning).ceiling_without_context() == pytest.approx((1 + 1 / MODES) / 2)


def test_scoring_counts_words_only() -> None:
    modes = LatentModes.of(0)

    class Oracle(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            markers = (input_ids - 33).clamp_min(0).amax(1)  # the largest marker is the mode's, where there is one
            meaning = torch.from_numpy(modes.meaning)[markers]  # [B, words]
            labels = meaning.gather(1, (input_ids - 1).clamp(0, 31))
            return type("Output", (), {"logits": torch.nn.functional.one_hot(labels, CLASSES).float()})

    found = score_tokens(Oracle(), modes)
    assert 0.98 < found["score"] <= 1
    assert "mutual_information" not in found


def test_watching_counts_by_kind_and_leaves_padding_out() -> None:
    layer = next(m for m in build_arm("static", TRAINEE, seed=0).modules() if isinstance(m, ExpertLayer))
    watch = ExpertWatch(2, [layer])
    watch.expect(torch.tensor([0, 1]))
    experts = torch.tensor([[0, 1], [0, 8], [7, 6], [8, 8]])  # 8 is padding
    nothing = torch.zeros(0)
    watch.count(0, RoutingRecord(nothing, experts, nothing, nothing, nothing))
    counts = np.zeros((2, 8))
    counts[0, [0, 1]], counts[1, [6, 7]] = (2, 1), (1, 1)
    found = watch.summary()
    assert found["mutual_information"] == [pytest.approx(mutual_information(counts))]
    assert found["mutual_information"][0] > 0.9


def test_watching_leaves_the_model_as_it_was() -> None:
    model = build_arm(CONTEXT, TRAINEE, seed=0)
    batch, kinds = LatentModes.of(0).held_out(0)
    with watch_experts(model, num_kinds=MODES) as watch, torch.no_grad():
        assert not model.training
        watch.expect(kinds)
        model(**batch)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_gains_are_paired_and_their_interval_is_students() -> None:
    context = {"0": 0.9, "1": 0.8, "2": 0.95}
    other = {"0": 0.85, "1": 0.7, "2": 0.93, "9": 0.1}
    gain = paired_gain(context, other, higher_is_better=True)
    assert gain is not None
    differences = [0.05, 0.1, 0.02]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (gain.low, gain.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (gain.mean, gain.seeds) == (pytest.approx(np.mean(differences)), 3)
    assert gain.excludes_zero is False
    loss = paired_gain(context, other, higher_is_better=False)
    assert loss is not None
    assert loss.mean == pytest.approx(-gain.mean)


def test_one_seed_has_no_interval_and_none_no_gain() -> None:
    gain = paired_gain({"0": 1.0}, {"0": 0.5, "1": 0.2}, higher_is_better=True)
    assert gain is not None
    assert (gain.mean, gain.low, gain.excludes_zero) == (0.5, None, None)
    assert paired_gain({"0": 1.0}, {"1": 1.0}, higher_is_better=True) is None


def cells(task: str, scores: dict[str, list[float]], *, steps: int = 350) -> dict[str, dict]:
    common = {"parameters": 1, "active_parameters": 1, "flops_per_step": 1.0, "processor_seconds": 1.0, "code": "c"}
    return {
        f"{task}/{steps}/{arm}/seed{seed}": {
            "task": task, "steps": steps, "arm": arm, "seed": seed, "score": score,
            "by_source": {"a": score, "b": 2 * score}, **common,
        }
        for arm, values in scores.items()
        for seed, score in enumerate(values)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("gains", "finding"),
    [
        ([0.03, 0.033, 0.036], "context is better; what was measured before lies inside the interval"),
        ([0.009, 0.010, 0.011], "context is better; what was measured before lies above the interval"),
        ([0.090, 0.091, 0.089], "context is better; what was measured before lies below the interval"),
        ([-0.01, 0.0, 0.01], "no difference shown; what was measured before lies above the interval"),
        ([-0.006, -0.0061, -0.0059], "static is better; what was measured before lies above the interval"),
        ([0.1], "one seed only"),
        ([], "not measured"),
    ],
)
def test_findings_say_whether_the_interval_excludes_zero(gains: list[float], finding: str) -> None:
    context = [0.9, 0.91, 0.89]
    static = [score - gain for score, gain in zip(context, gains, strict=False)]
    found = summarise(cells("latent-mode", {"context": context, "static": static}))
    assert found["budgets"][0]["finding"] == finding


def test_losses_are_better_when_low_and_sources_have_their_own_gains() -> None:
    found = summarise(cells("mixed-text", {"context": [3.0, 3.1], "static": [3.2, 3.3]}, steps=10))
    (budget,) = found["budgets"]
    assert budget["measured_before"] is None
    static = budget["arms"]["static"]
    assert static["gain"]["mean"] == pytest.approx(0.2)
    assert static["gain_by_source"]["b"]["mean"] == pytest.approx(0.4)
    assert budget["arms"]["context"]["gain"] is None
    assert gain_text("mixed-text", 0.2) == "+0.2000"
    assert gain_text("latent-mode", 0.2) == "+20.00"


def test_a_cell_is_repeated_bit_for_bit() -> None:
    first, again = (train_cell(LatentModeTask(), CONTEXT, seed=1, steps=5) for _ in range(2))
    drop = ("seconds", "processor_seconds")
    assert {k: v for k, v in first.items() if k not in drop} == {k: v for k, v in again.items() if k not in drop}
    assert len(first["mutual_information"]) == 1
    assert first["ceiling_without_context"] < 0.5


class Watched(LatentModeTask):
    """Keeps the batches that a cell was trained on."""

    def material(self, seed: int) -> Material:
        self.seen: list[torch.Tensor] = []
        real = super().material(seed)

        def step(number: int) -> list:
            batches = list(real.step(number))
            self.seen += [value for batch in batches for value in batch.values()]
            return batches

        return Material(step=step, evaluate=lambda _: {"score": 0.0})


def test_within_a_seed_every_arm_is_trained_on_the_same_batches() -> None:
    seen = []
    for arm in ARMS:
        task = Watched()
        train_cell(task, arm, seed=1, steps=2)
        seen.append(torch.stack(task.seen))
    assert len(seen[0]) == 6  # two steps of ids, mask and labels
    assert all(torch.equal(other, seen[0]) for other in seen)


def test_a_run_that_diverges_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise ArithmeticError("step 3 of 5: loss or gradient is not finite")

    monkeypatch.setattr(training, "take_steps", diverge)
    with pytest.raises(ArithmeticError, match=r"^latent-mode, static, seed 4: step 3 of 5"):
        train_cell(LatentModeTask(), "static", seed=4, steps=5)


def test_the_learner_can_be_another() -> None:
    other = learner(num_heads=1, lr=0.01)
    assert learner(num_heads=4, lr=3e-3) == TRAINEE
    assert build_arm(CONTEXT, other, seed=0).config.num_attention_heads == 1
    assert settings(other)["lr"] == 0.01
    assert settings(other)["options"] != settings()["options"]


def test_training_learns_the_task() -> None:
    """The context gate beats the best that can be known without context, in a few seconds."""
    found = train_cell(LatentModeTask(), CONTEXT, seed=0, steps=150)
    assert found["score"] > found["ceiling_without_context"] + 0.1


def test_the_forecast_asks_earlier_cells_first() -> None:
    known = cells("latent-mode", {"context": [0.9]}, steps=100)
    known["latent-mode/100/context/seed0"]["seconds"] = 50.0
    task = LatentModeTask()
    expected = 0.5 * (200 + task.evaluation_steps)
    assert expected_seconds(task, [("context", 200)], cells=known) == pytest.approx(expected)
    assert 0 < expected_seconds(task, [("dense-active", 10)], cells={}) < 10
    assert [duration_text(seconds) for seconds in (40, 720, 12_240)] == ["40 s", "12 min", "3.4 h"]
