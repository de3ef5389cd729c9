"""Puts the table of benchmarks/results/claims.json into README.md, between its two marks.

Run: python benchmarks/claims_table.py
"""

import json

from runs import ROOT
from sortyard.studies.bench.results import BenchResult
from sortyard.studies.claims.claims_page import markdown

BEGIN, END = "<!-- claims: benchmarks/claims_table.py -->", "<!-- end of claims -->"


def with_table(readme: str) -> str:
    """The text with the newest table."""
    result = BenchResult(**json.loads((ROOT / "benchmarks" / "results" / "claims.json").read_text(encoding="utf-8")))
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown(result)}{END}{after}"


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
