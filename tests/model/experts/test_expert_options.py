import subprocess
import sys

import pytest
from pydantic import ValidationError

from sortyard.model.experts.options import ExpertOptions, check_causal


def test_defaults_fit_together():
    options = ExpertOptions()
    assert options.num_experts % options.num_expert_groups == 0


def test_one_expert_is_a_dense_net_whatever_the_rest_says():
    assert ExpertOptions(num_experts=1).num_experts == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 6}, "choose a divisor of num_experts"),
        ({"num_expert_groups": 2, "num_groups_per_tok": 4, "num_experts_per_tok": 4}, "choose 1 to 2"),
        ({"num_experts_per_tok": 3}, "choose a multiple of num_groups_per_tok"),
        ({"num_experts_per_tok": 6}, "lower it to at most 4"),
        ({"group_gate": "context", "context": "none"}, "needs a context"),
        ({"router": "token_hash", "bias_update_rate": 0.01}, "set it to 0"),
        ({"ema_decay": 1.0}, "less than 1"),
        ({"num_experts": 0}, "greater than or equal to 1"),
        ({"experts": 8}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        ExpertOptions(**fields)


@pytest.mark.parametrize("context", ["mean", "shuffled"])
def test_contexts_that_see_the_future_are_refused_for_causal_models(context):
    with pytest.raises(ValueError, match="running_mean, ema, none"):
        check_causal(ExpertOptions(context=context))
    check_causal(ExpertOptions(context=context, num_experts=1))
    check_causal(ExpertOptions(context=context, router="token_hash"))


@pytest.mark.parametrize("context", ["running_mean", "ema", "none"])
def test_causal_contexts_are_accepted(context):
    check_causal(ExpertOptions(context=context))


def test_options_load_without_torch():
    code = "import sys, sortyard.model.experts.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 0.0),
        ({"num_experts": 32}, 0.001),
        ({"num_experts": 64, "bias_update_rate": 0.0}, 0.0),
        ({"num_experts": 64, "router": "token_hash"}, 0.0),
    ],
)
def test_many_experts_get_the_selection_bias_unless_told_otherwise(settings, rate):
    assert ExpertOptions(**settings).bias_update_rate == rate
