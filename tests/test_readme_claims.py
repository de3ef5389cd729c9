"""The README's table of claims is that of the newest ledger."""

import json
from pathlib import Path

from sortyard.studies.bench.results import BenchResult
from sortyard.studies.claims.claims_page import markdown

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_comes_from_the_committed_ledger() -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "claims.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert markdown(BenchResult(**stored)) in readme, "python benchmarks/claims_table.py puts it there"
