"""What the import contract cannot say: where processes may talk, and what an operation must bring along."""

import re
from pathlib import Path

import pytest

import sortyard

SOURCE = Path(sortyard.__file__).parent
OPERATIONS = ["bucket_attention", "lsh_hash", "lsh_tree", "expert_dispatch", "grouped_mlp"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_reference_and_a_derivation(name):
    assert (SOURCE / "ops" / name / "reference.py").is_file()
    assert (SOURCE / "ops" / name / "README.md").is_file()


def test_only_training_and_data_may_speak_to_other_processes():
    allowed = {"parallel", "training", "data"}
    users = [path for path in SOURCE.rglob("*.py") if re.search(r"torch\.distributed", path.read_text())]
    assert [path for path in users if path.relative_to(SOURCE).parts[0] not in allowed] == []


def test_nothing_unpickles():
    pattern = re.compile(r"\b(pickle\.load|torch\.load|joblib\.load|allow_pickle=True|yaml\.load\()")
    assert [path for path in SOURCE.rglob("*.py") if pattern.search(path.read_text())] == []


def test_no_module_is_called_after_nothing():
    forbidden = {"utils", "helpers", "common"}
    assert [path for path in SOURCE.rglob("*") if path.stem in forbidden] == []
