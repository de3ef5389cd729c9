"""`sortyard study claims` on the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sortyard.studies.claims.claim_list import CLAIMS


def test_a_dry_run_plans_and_writes_nothing(sortyard: Callable, tmp_path: Path) -> None:
    ended = sortyard("study", "claims", "--only", "C3,C12", "--dry-run", "--out", "there", "--json")
    assert ended.status == 0, ended.err
    assert set(ended.json["cells"]) == {claim.id for claim in CLAIMS}
    assert "min in all" in ended.err
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--only", "C99"), "--only C99: is none of C1"),
        (("--data", "just-a-path"), "expected NAME=PATH"),
        (("--encoder", "nowhere"), "--encoder and --glue"),
        (("--encoder", "nowhere", "--glue", "nowhere"), "no such folder"),
    ],
)
def test_bad_input(sortyard: Callable, words: tuple[str, ...], told: str) -> None:
    ended = sortyard("study", "claims", *words)
    assert ended.status == 2
    assert told in ended.err
