"""One set of names: the recipe's model section and the saved configuration agree."""

import dataclasses
import subprocess
import sys

import pytest

from sortyard.model.configuration import SortyardConfig
from sortyard.model.options import ModelOptions


def test_recipe_and_configuration_have_the_same_names_and_defaults():
    fields = {field.name: field.default for field in dataclasses.fields(SortyardConfig)}
    for name, info in ModelOptions.model_fields.items():
        if name == "rope_theta":  # transformers keeps it inside rope_parameters
            assert info.default == SortyardConfig.default_theta
        else:
            assert fields[name] == info.default, name


def test_options_survive_the_configuration():
    options = ModelOptions(num_experts=16, rope_theta=160_000.0, selection="rounds", context="ema")
    assert SortyardConfig.from_options(options).options() == options


def test_the_package_imports_no_torch_and_registers_late():
    code = """
import sys, sortyard, sortyard.model.options
assert "torch" not in sys.modules and "transformers" not in sys.modules
import transformers
from transformers import AutoConfig, AutoModelForMaskedLM
config = AutoConfig.for_model("sortyard", vocab_size=20, hidden_size=16, num_hidden_layers=1)
print(type(AutoModelForMaskedLM.from_config(config)).__name__)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "SortyardForMaskedLM"


def test_registration_works_when_transformers_was_there_first():
    code = """
from transformers import AutoConfig, AutoModel
import sortyard
config = AutoConfig.for_model("sortyard", vocab_size=20, hidden_size=16, num_hidden_layers=1)
print(type(AutoModel.from_config(config)).__name__)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "SortyardModel"


@pytest.mark.parametrize("first", ["sortyard.model.modeling", "sortyard.model.block", "sortyard.model.factory"])
def test_any_part_of_the_model_may_be_imported_first(first):
    code = f"""
import {first}
if {first!r} == "sortyard.model.block":
    import sortyard.model.modeling
from transformers import AutoConfig, AutoModelForMaskedLM
config = AutoConfig.for_model("sortyard", vocab_size=20, hidden_size=16, num_hidden_layers=1)
print(type(AutoModelForMaskedLM.from_config(config)).__name__)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "SortyardForMaskedLM"


@pytest.mark.parametrize("first", ["from transformers import BertModel", "import transformers.modeling_layers"])
@pytest.mark.parametrize("order", ["{ours}; {theirs}", "{theirs}; {ours}"])
def test_parts_of_transformers_may_be_imported_on_either_side(first, order):
    code = (
        order.format(ours="import sortyard", theirs=first)
        + """
from transformers import AutoConfig, AutoModelForMaskedLM
config = AutoConfig.for_model("sortyard", vocab_size=20, hidden_size=16, num_hidden_layers=1)
print(type(AutoModelForMaskedLM.from_config(config)).__name__)
"""
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "SortyardForMaskedLM"
