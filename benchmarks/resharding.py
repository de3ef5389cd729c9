"""Runs that stop in one layout of processes and go on in another: all ordered pairs of eight layouts, in float64.

Each layout trains two steps and saves weights, moments and data position; each layout goes on from every one of those
for two more. Losses are compared with those of one process that never stopped, weights in the end, too; beside it, how
many tensors of the whole model are not to the bit what was saved.

Run: python benchmarks/resharding.py   (a few minutes on 2 cores)
Writes benchmarks/results/resharding.json.
"""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from runs import ROOT, write_result

sys.path.insert(0, str(ROOT))

from tests.parallel.resharding import LAYOUTS, run_pairs

from sortyard.runs.environment import describe_environment


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="resharding-") as folder:
        pairs = run_pairs(tuple(LAYOUTS), Path(folder))
    worst = {name: max(pair[name] for pair in pairs.values()) for name in ("loss", "weights", "differing")}
    environment = describe_environment(
        seed=7, device="cpu", data_fingerprint="random tokens", command=["resharding.py"]
    )
    date = datetime.now(UTC).date().isoformat()
    result = {"date": date, "environment": environment, "layouts": LAYOUTS, "worst": worst, "pairs": pairs}
    write_result("resharding", result)
    print(len(pairs), worst)


if __name__ == "__main__":
    main()
