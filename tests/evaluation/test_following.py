"""How closely a model follows a teacher, against a plain computation over all tokens at once."""

import pytest
import torch

from sortyard.evaluation.following import following_score
from sortyard.evaluation.routing import utilisation
from tests.objectives.test_distillation import LENGTH, make_batch, make_model, objective_of, rows_of


def test_figures_equal_a_plain_computation():
    model, batch = make_model(), make_batch(LENGTH, 33, 40)
    objective = objective_of(model)
    found = following_score(model, objective=objective, batches=rows_of(batch))
    real = batch["attention_mask"].bool()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert model.training  # as it was
    with torch.no_grad():
        outputs = model.base_model.eval()(**inputs, output_statistics=True)
        student = outputs.last_hidden_state[real].double()
        teacher = objective.teacher(**inputs).last_hidden_state[real].double()
    squares = (student - teacher).square().sum(-1) / teacher.square().sum(-1)
    cosines = (student * teacher).sum(-1) / (student.norm(dim=-1) * teacher.norm(dim=-1))
    assert found.loss == pytest.approx(float(squares.mean()), rel=1e-5)
    assert found.relative_error == pytest.approx(float((student - teacher).norm() / teacher.norm()), rel=1e-5)
    assert found.token_cosine == pytest.approx(float(cosines.mean()), rel=1e-6)
    assert found.utilisation == pytest.approx(float(utilisation(outputs.expert_loads.numpy()).min()), rel=1e-6)
    assert found.num_tokens == LENGTH + 73
    assert found.relative_error > 0.02


def test_a_model_without_experts_has_no_utilisation():
    model = make_model(num_experts=1, num_expert_groups=1, num_groups_per_tok=1)
    assert following_score(model, objective=objective_of(model), batches=[make_batch(20)]).utilisation is None


def test_no_tokens_is_an_error():
    model = make_model()
    with pytest.raises(ValueError, match="give more text"):
        following_score(model, objective=objective_of(model), batches=[])
