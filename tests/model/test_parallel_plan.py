"""The rules by which tensor parallelism cuts a model."""

import pytest
import torch
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

from sortyard import SortyardConfig, SortyardForMaskedLM
from sortyard.errors import InputError

BASE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
MIXED = {"expert_layers": [False, True]}
KINDS = {
    "dense": {"num_experts": 1},
    "experts": {},
    "mixed": MIXED,
    "mixed-with-bias": MIXED | {"use_bias": True},
    "shared": MIXED | {"shared_expert": True, "use_bias": True},
    "not-gated": {"gated_ffn": False},
    "not-gated-with-bias": MIXED | {"gated_ffn": False, "use_bias": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_names_something_and_a_known_style(kind):
    config = SortyardConfig(**BASE | KINDS[kind])
    with torch.device("meta"):
        model = SortyardForMaskedLM(config)
    names = {name for name, _ in [*model.named_modules(), *model.named_parameters()]}
    for rule, style in model.tp_plan.items():
        assert any(rule.replace("*", str(layer)) in names for layer in range(2)), rule
        assert style in ALL_PARALLEL_STYLES


@pytest.mark.parametrize("kind", KINDS)
def test_only_routers_and_heads_stay_whole(kind):
    config = SortyardConfig(**BASE | KINDS[kind])
    with torch.device("meta"):
        model = SortyardForMaskedLM(config)
    whole = set()
    for name, parameter in model.named_parameters():
        rule = name.replace("layers.0.", "layers.*.").replace("layers.1.", "layers.*.")
        if parameter.ndim > 1 and not {rule, rule.removesuffix(".weight")} & model.tp_plan.keys():
            whole.add(".".join(rule.split(".")[-2:]))
    assert whole <= {"router.gate", "ffn.down_proj_bias", "dense.weight"}  # dense: the prediction head's


def test_the_plan_is_not_saved(tmp_path):
    SortyardConfig(**BASE).save_pretrained(tmp_path)
    assert "tp_plan" not in (tmp_path / "config.json").read_text()


def test_the_plan_follows_from_the_fields_alone():
    config = SortyardConfig(**BASE)
    plan = config.base_model_tp_plan
    config.base_model_tp_plan = plan | {"embed_tokens": "embedding_rowwise"}  # as transformers 5.17 does
    assert config.base_model_tp_plan == plan
    with pytest.raises(InputError, match=r"give rules of your own as DistributedConfig\(tp_plan=...\)"):
        config.base_model_tp_plan = plan | {"encoder.final_norm": "replicate"}


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"num_attention_heads": 2}, 4, r"tp_size is 4, which does not divide num_attention_heads 2; .* be 1, 2$"),
        ({"moe_intermediate_size": 24}, 5, r"num_attention_heads 4 and moe_intermediate_size 24; .* be 1, 2, 4$"),
        ({"num_experts": 1, "intermediate_size": 50}, 4, r"does not divide intermediate_size 50; .* be 1, 2$"),
        (MIXED | {"intermediate_size": 50}, 4, r"does not divide intermediate_size 50; .* be 1, 2$"),
        ({"shared_expert": True, "intermediate_size": 50}, 4, r"does not divide intermediate_size 50; .* be 1, 2$"),
    ],
)
def test_what_does_not_fit_is_named_with_sizes_that_do(fields, size, message):
    with torch.device("meta"):
        model = SortyardForMaskedLM(SortyardConfig(**BASE | fields))
    with pytest.raises(InputError, match=message):
        SortyardForMaskedLM.maybe_distribute_model(model, DistributedConfig(tp_size=size), None)


def test_a_width_that_no_layer_has_need_not_fit():
    with torch.device("meta"):
        model = SortyardForMaskedLM(SortyardConfig(**BASE | {"intermediate_size": 49}))
    assert SortyardForMaskedLM.maybe_distribute_model(model, DistributedConfig(tp_size=4), None) is model
