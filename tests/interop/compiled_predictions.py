"""A program of its own: the compiled predictor beside the plain one, on texts of many lengths.

Run: python -m tests.interop.compiled_predictions FOLDER; prints the largest difference and the graphs that were made.
"""

import sys

from torch._dynamo.utils import counters

from sortyard.interop.predictor import Predictor

WORDS = [f"w{i}" for i in range(1, 40)]
LENGTHS = (1, 2, 3, 5, 8, 13, 14, 15, 16, 17, 18, 21, 30, 34, 35, 48, 55, 60, 70, 89, 92)
TEXTS = [" ".join(WORDS[(length * k) % 39] for k in range(length)) for length in LENGTHS for _ in range(3)]


def main(folder: str) -> None:
    plain, compiled = (Predictor.from_pretrained(folder, compiled=kind) for kind in (False, True))
    differences = []
    for room in (None, 64, 200):  # batches of one, of two and of many
        both = zip(
            plain.predict(TEXTS, tokens_per_batch=room), compiled.predict(TEXTS, tokens_per_batch=room), strict=True
        )
        differences += [abs(a - b) for one, other in both for a, b in zip(one.logits, other.logits, strict=True)]
    print(max(differences), counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))


if __name__ == "__main__":
    main(sys.argv[1])
