"""Distillation: the loss against a plain loop, what micro-batches add up to, and who gets a gradient."""

import pytest
import torch

from sortyard.model.attention.bucket import BucketCore
from sortyard.model.configuration import SortyardConfig
from sortyard.model.factory import build_model
from sortyard.model.heads import SortyardForMaskedLM
from sortyard.model.modeling import SortyardModel
from sortyard.model.options import ModelOptions
from sortyard.objectives.distillation import (
    DistillationObjective,
    DistilledMaskedLMObjective,
    Followed,
    frozen_dense_copy,
)
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.objectives.options import DistillationOptions

VOCABULARY, LENGTH = 50, 48


def make_model(*, head: str = "masked_lm", **changes: object) -> torch.nn.Module:
    settings = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "moe_intermediate_size": 16, "max_position_embeddings": 64, "num_experts": 4, "num_expert_groups": 2,
        "num_groups_per_tok": 1, "num_experts_per_tok": 1, "bucket_size": 4, "query_chunk": 4, "near_buckets": 1,
        "beam": 1, "local_window": 1, "dense_up_to": 8,
    }  # fmt: skip
    options = ModelOptions(**(settings | changes))
    model = build_model(options, head=head, vocab_size=VOCABULARY, tokenizer_ids={"pad_token_id": 0}, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a fresh model's attention is nearly even and adds next to nothing to a state
        for name, parameter in model.named_parameters():
            if "_proj.weight" in name and ".attention." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def make_batch(*lengths: int, width: int = LENGTH, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, VOCABULARY, (length,), generator=generator)
    labels = torch.where((ids > 0) & (torch.arange(width) % 4 == 1), ids, torch.full_like(ids, -100))
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def rows_of(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [{name: value[row : row + 1] for name, value in batch.items()} for row in range(len(batch["input_ids"]))]


def objective_of(model: torch.nn.Module, **options: object) -> DistillationObjective:
    return DistillationObjective(frozen_dense_copy(model), options=DistillationOptions(**options))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", ["masked_lm", "sequence_classification"])
def test_the_copy_is_the_same_encoder_with_dense_attention(head):
    model, batch = make_model(head=head), make_batch(LENGTH, 30)
    twin = frozen_dense_copy(model)
    config = SortyardConfig.from_dict(model.config.to_dict() | {"attention": "dense"})
    truth = SortyardModel(config).eval()
    truth.load_state_dict(model.base_model.state_dict())
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        states = twin(**inputs).last_hidden_state[real]
        torch.testing.assert_close(states, truth(**inputs).last_hidden_state[real])
        assert (model.base_model.eval()(**inputs).last_hidden_state[real] - states).norm() > 0.05 * states.norm()
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert not twin.training


def test_the_original_stays_as_it_is():
    model = make_model()
    twin = frozen_dense_copy(model)
    assert model.config.attention == "bucket"
    assert isinstance(model.base_model.encoder.layers[0].attention.core, BucketCore)
    with torch.no_grad():
        model.base_model.embeddings.word_embeddings.weight.add_(1.0)
    assert not torch.equal(twin.embeddings.word_embeddings.weight, model.base_model.embeddings.word_embeddings.weight)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_sliding_layer_keeps_its_window():
    config = make_model().config
    config.attention_layers = ["sliding", "bucket"]
    config.sliding_window = 3
    twin = frozen_dense_copy(SortyardForMaskedLM(config))
    assert [layer.attention.core.window for layer in twin.encoder.layers] == [3, None]


@pytest.mark.parametrize("kind", ["relative_error", "cosine"])
def test_token_losses_and_their_gradient_equal_a_plain_loop(kind):
    generator = torch.Generator().manual_seed(0)
    layers = [[torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2)] for _ in range(3)]
    student = tuple(s.requires_grad_() for s, _ in layers)
    teacher = tuple(t * 3 for _, t in layers)
    objective = DistillationObjective(torch.nn.Identity(), options=DistillationOptions(loss=kind))
    found = objective.token_losses(Followed(None, student, teacher))
    expected = torch.zeros(5, dtype=torch.float64)
    slopes = [torch.zeros(5, 7, dtype=torch.float64) for _ in layers]
    for layer, (s, t) in enumerate(zip(student, teacher, strict=True)):
        for token in range(5):
            a, b = s[token].detach(), t[token]
            if kind == "cosine":
                cosine = a @ b / (a.norm() * b.norm())
                expected[token] += (1 - cosine) / 3
                slopes[layer][token] = -(b / (a.norm() * b.norm()) - cosine * a / a.norm() ** 2) / 3
            else:
                expected[token] += ((a - b) ** 2).sum() / (b**2).sum() / 3
                slopes[layer][token] = 2 * (a - b) / (b**2).sum() / 3
    torch.testing.assert_close(found, expected)
    for slope, found_slope in zip(slopes, torch.autograd.grad(found.sum(), student), strict=True):
        torch.testing.assert_close(found_slope, slope)


@pytest.mark.parametrize("kind", ["relative_error", "cosine"])
def test_the_loss_has_no_scale(kind):
    states = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    objective = DistillationObjective(torch.nn.Identity(), options=DistillationOptions(loss=kind))
    losses = [objective.token_losses(Followed(None, (c * states[0],), (c * states[1],))) for c in (1.0, 700.0)]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0].min() > 0


def test_a_teacher_of_zeros_gives_no_infinity():
    objective = DistillationObjective(torch.nn.Identity(), options=DistillationOptions())
    zeros = torch.zeros(3, 4)
    assert objective.token_losses(Followed(None, (zeros,), (zeros,))).tolist() == [0.0, 0.0, 0.0]


def test_a_dense_model_has_nothing_to_follow():
    model, batch = make_model(attention="dense", balance="none"), make_batch(LENGTH)
    objective = objective_of(model)
    loss = objective.compute(model, batch, num_targets=objective.count_targets(batch))
    loss.total.backward()
    assert float(loss.task) < 1e-10
    assert max(float(grad.abs().max()) for grad in gradients(model).values()) < 1e-5


def test_counts_real_tokens_and_reads_no_labels():
    model, batch = make_model(), make_batch(30, 11)
    objective = objective_of(model)
    assert objective.count_targets(batch) == 41
    with_labels = objective.compute(model, batch, num_targets=41)
    del batch["labels"]
    assert torch.equal(objective.compute(model, batch, num_targets=41).total, with_labels.total)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_micro_batches_add_up_to_the_step(layers):
    model, batch = make_model(balance="none"), make_batch(LENGTH, 29)
    objective = objective_of(model, layers=layers)
    count = objective.count_targets(batch)
    whole = objective.compute(model, batch, num_targets=count)
    whole.total.backward()
    expected = {name: grad.clone() for name, grad in gradients(model).items()}
    model.zero_grad(set_to_none=True)
    parts = [objective.compute(model, row, num_targets=count) for row in rows_of(batch)]
    sum(part.total for part in parts).backward()
    torch.testing.assert_close(sum(part.task for part in parts), whole.task)
    assert float(whole.task) > 1e-3
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_packed_rows_give_what_separate_rows_do():
    model = make_model(balance="none")
    objective = objective_of(model)
    batch = make_batch(28, 20)
    separate = objective.compute(model, batch, num_targets=48).task
    ids = torch.cat([batch["input_ids"][0, :28], batch["input_ids"][1, :20]])[None]
    packed = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "cu_seqlens": torch.tensor([0, 28, 48], dtype=torch.int32),
    }  # fmt: skip
    torch.testing.assert_close(objective.compute(model, packed, num_targets=48).task, separate)


def test_padding_changes_nothing():
    model = make_model(balance="none")
    objective = objective_of(model)
    narrow, wide = make_batch(30, width=30), make_batch(30, width=41)
    losses = [objective.compute(model, batch, num_targets=30).task for batch in (narrow, wide)]
    torch.testing.assert_close(losses[0], losses[1])


def test_only_the_encoder_learns_and_the_balance_counts():
    model, batch = make_model(), make_batch(LENGTH, 20)
    objective = objective_of(model)
    loss = objective.compute(model, batch, num_targets=68)
    loss.total.backward()
    assert not loss.task.requires_grad
    torch.testing.assert_close(loss.total.detach(), loss.task + loss.balance)
    assert float(loss.balance) > 0
    assert loss.expert_loads.shape == (2, 4)
    assert loss.sparsity > 0.2
    learning = set(gradients(model))
    heads = {name for name, _ in model.named_parameters() if not name.startswith("model.")}
    assert heads == {"head.dense.weight", "head.norm.weight", "decoder.bias"}
    assert learning & heads == set()
    assert {name for name, _ in model.named_parameters() if "router" in name} <= learning
    assert not any(parameter.grad is not None for parameter in objective.teacher.parameters())


def test_both_is_masked_lm_and_following():
    model, batch = make_model(), make_batch(LENGTH, 31)
    distillation = objective_of(model, coef=2.5)
    both = DistilledMaskedLMObjective(distillation)
    count = both.count_targets(batch)
    assert count == int((batch["labels"] != -100).sum())
    whole = both.compute(model, batch, num_targets=count)
    masked = MaskedLMObjective().compute(model, batch, num_targets=count)
    following = distillation.token_losses(distillation.follow(model, batch)).mean()
    torch.testing.assert_close(whole.task, masked.task + 2.5 * following.detach())
    torch.testing.assert_close(whole.total, whole.task + masked.balance)
    whole.total.backward()
    assert {name for name, _ in model.named_parameters()} == set(gradients(model))


def test_following_brings_a_sparse_model_nearer_to_its_dense_self():
    model = make_model()
    objective = objective_of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    held_out = make_batch(LENGTH, LENGTH, LENGTH, LENGTH, seed=99)
    count = objective.count_targets(held_out)

    def error() -> float:
        with torch.no_grad():
            return float(objective.compute(model, held_out, num_targets=count).task)

    before = error()
    for step in range(40):
        batch = make_batch(*[LENGTH] * 8, seed=step)
        objective.compute(model, batch, num_targets=objective.count_targets(batch)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert error() < 0.8 * before


@pytest.mark.parametrize("both", [False, True], ids=["following", "both"])
def test_models_whose_configuration_asks_for_tuples_are_followed(both):
    model, batch, losses = make_model(), make_batch(LENGTH, 31), []
    for return_dict in (True, False):
        model.config.return_dict = return_dict
        objective = objective_of(model)
        objective = DistilledMaskedLMObjective(objective) if both else objective
        losses.append(objective.compute(model, batch, num_targets=objective.count_targets(batch)).total)
    assert torch.equal(*losses)
