"""What the sides of `upcycled.py reviews` cost on one core: a training step of mixed reviews, and reading long ones.

Run: python benchmarks/upcycled_speed.py [--work runs/upcycled] [--rounds 4]   (upcycled.py reviews makes the starts)
Writes benchmarks/results/upcycled_speed.json: processor seconds, the sides taking turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sortyard  # noqa: F401 - registers its models with transformers
from runs import ROOT, write_result
from sortyard.runs.environment import describe_environment

STARTS = {"dense-512": "dense-512-start", "dense": "dense-start", "tree": "tree-settled/model"}
LONGEST = {"dense-512": 512, "dense": 2048, "tree": 2048}
TRAINED_ON, READ, ROWS = 8, 12, 4  # reviews of a step; long reviews that are read, and how many of them at a time
LEARNING_RATE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "upcycled")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    folder: Path = args.work / "reviews"
    torch.set_num_threads(1)
    calls = {name: make_calls(name, folder=folder) for name in STARTS}
    spent: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in calls[name]} for name in STARTS}
    for turn in range(args.rounds + 1):
        for name, found in calls.items():
            for kind, call in found.items():
                began = time.process_time()
                call(turn)
                if turn:
                    spent[name][kind].append(time.process_time() - began)
    environment = describe_environment(seed=0, device="cpu", data_fingerprint="", command=["upcycled_speed.py"])
    environment.pop("command")
    medians = {name: {kind: statistics.median(times) for kind, times in of.items()} for name, of in spent.items()}
    result = {
        "what": f"processor seconds of one thread, bf16: a training step of {TRAINED_ON} reviews of any length, and "
        f"reading {READ} reviews of more than 768 tokens, {ROWS} at a time; sides take turns, median of rounds",
        "script": "benchmarks/upcycled_speed.py",
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment,
        "seconds": spent,
        "times_dense": {
            name: {kind: value / medians["dense"][kind] for kind, value in of.items()} for name, of in medians.items()
        },
    }
    write_result("upcycled_speed", result)
    print(json.dumps({"median_seconds": medians, "times_dense": result["times_dense"]}, indent=1))


def make_calls(name: str, *, folder: Path) -> dict[str, Callable[[int], None]]:
    """What is timed of a side; the turn's number chooses the reviews."""
    start = folder / STARTS[name]
    model = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(start)
    texts = {part: read_rows(folder / "data" / f"{part}.jsonl") for part in ("train", "dev")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def encode(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        words = [row["text"] for row in rows]
        encoded = tokenizer(words, truncation=True, max_length=LONGEST[name], padding=True, return_tensors="pt")
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}

    def train(turn: int) -> None:
        rows = texts["train"][turn * TRAINED_ON : (turn + 1) * TRAINED_ON]
        model.train()
        labels = torch.tensor([row["label"] for row in rows])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**encode(rows), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def read(turn: int) -> None:
        model.eval()
        rows = texts["dev"][turn * READ : (turn + 1) * READ]
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            for first in range(0, READ, ROWS):
                model(**encode(rows[first : first + ROWS]))

    return {"train": train, "read": read}


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
