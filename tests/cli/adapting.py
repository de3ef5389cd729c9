"""What the tests of `adapt` start from."""

import random
from pathlib import Path

SPARSE = ["bucket_size=4", "query_chunk=4", "near_buckets=1", "beam=1", "local_window=1", "dense_up_to=8"]
FEW = ["--data", "text.txt", "--steps", "3", "-q", "adapt.loop.tensorboard=false"]


def write_text(folder: Path, *, documents: int = 24) -> None:
    generator = random.Random(0)
    texts = [
        " ".join(f"w{generator.randrange(60)}" for _ in range(generator.randint(30, 90))) for _ in range(documents)
    ]
    (folder / "text.txt").write_text("\n\n\n".join(texts) + "\n")
