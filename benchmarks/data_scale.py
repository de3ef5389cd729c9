"""Two terabytes of tokens, simulated: what it takes to open them, to read a step's batch, and to jump to any step.

A folder of 2,000 shards with 1e12 uint16 tokens in 1e9 documents of log-normal lengths. Token files are sparse (holes,
read as zeros) and eight different files of offsets, each for 5e8 tokens, stand under the names of all shards as hard
links, so about 40 MB of disk are used, in a temporary folder that is removed afterwards. Everything else is as in
training: the real format with its block checksums, rows of 512, the masks of masked LM, steps of 8 micro-batches of 512
rows.

What this cannot show is the disk: holes cost no reading. A row reads one or two blocks of 4,096 bytes of tokens, about
as many of offsets, and 4 bytes of checksums for each.

Run: python benchmarks/data_scale.py [--work FOLDER ON A FILE SYSTEM WITH SPARSE FILES]
Writes benchmarks/results/data_scale.json.
"""

import argparse
import hashlib
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runs import write_result
from sortyard.data.batches import MaskedLMSource
from sortyard.data.options import MaskingOptions
from sortyard.data.order import global_samples
from sortyard.data.packing import PackedRows
from sortyard.data.shard_blocks import BLOCK_BYTES, BlockSums
from sortyard.data.shard_format import INDEX_NAME, Shard, ShardIndex
from sortyard.data.shards import TokenShards
from sortyard.data.vocabulary import Vocabulary
from sortyard.runs.environment import describe_environment

SEED = 0
NUM_SHARDS, SHARD_TOKENS, SHARD_DOCUMENTS = 2000, 500_000_000, 500_000
VARIANTS = 8  # different files of offsets
TOKEN_BYTES = 2
LENGTH, MICRO_BATCH, ACCUMULATION = 512, 512, 8
VALIDATION_FRACTION = 0.001
STEPS, JUMPS = 10, 10
PROCESSES = 8
VOCAB_SIZE = 32_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="where the temporary folder is made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="sortyard-", dir=args.work) as folder:
        write_shards(Path(folder))
        disk = sum({(found := path.stat()).st_ino: found.st_blocks * 512 for path in Path(folder).iterdir()}.values())
        measured = measure(Path(folder))
    environment = describe_environment(seed=SEED, device="cpu", data_fingerprint="none", command=["data_scale.py"])
    environment.pop("command")
    result = {
        "what": "2 TB of tokens in sparse files: opening, batches of 4,096 rows of 512, jumps; one thread",
        "script": "benchmarks/data_scale.py",
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment,
        "not_measured": "reading from a disk: the token files are holes, and all offsets fit the page cache",
        "shards": NUM_SHARDS,
        "tokens": NUM_SHARDS * SHARD_TOKENS,
        "token_bytes": NUM_SHARDS * SHARD_TOKENS * TOKEN_BYTES,
        "documents": NUM_SHARDS * SHARD_DOCUMENTS,
        "different_files_of_offsets": VARIANTS,
        "disk_bytes_used": disk,
        "load_average": os.getloadavg()[0],  # above the number of cores, processor seconds say more than wall seconds
        **measured,
    }
    write_result("data_scale", result)


def write_shards(folder: Path) -> None:
    """Write the folder, as `prepare_shards` would if all tokens were 0."""
    tokens = folder / "zeros"
    with tokens.open("wb") as file:
        file.truncate(SHARD_TOKENS * TOKEN_BYTES)
    token_sums = sums_of_zeros(SHARD_TOKENS * TOKEN_BYTES)
    generator = np.random.default_rng(SEED)
    shards = []
    for variant in range(VARIANTS):
        np.save(folder / f"offsets-{variant}.npy", draw_offsets(generator))
        sums = BlockSums()
        sums.add((folder / f"offsets-{variant}.npy").read_bytes())
        (folder / f"sums-{variant}").write_bytes(token_sums + sums.finish())
    for number in range(NUM_SHARDS):
        variant = number % VARIANTS
        links = {
            f"tokens-{number:05d}.bin": tokens,
            f"documents-{number:05d}.npy": folder / f"offsets-{variant}.npy",
            f"checksums-{number:05d}.bin": folder / f"sums-{variant}",
        }
        for name, target in links.items():
            os.link(target, folder / name)
        names = dict(zip(("tokens", "documents", "checksums"), links, strict=True))
        shards.append(
            Shard(
                **names,
                num_documents=SHARD_DOCUMENTS,
                num_tokens=SHARD_TOKENS,
                num_texts=SHARD_DOCUMENTS,
                text_bytes=4 * SHARD_TOKENS,
                sha256=dict.fromkeys(links, hashlib.sha256().hexdigest()),  # of the right size, and never compared
            )
        )
    index = ShardIndex(
        complete=True, tokenizer_sha256="", source_sha256="", reading={}, dtype="<u2", shards=tuple(shards), skipped={}
    )
    (folder / INDEX_NAME).write_text(index.model_dump_json(indent=2))


def sums_of_zeros(num_bytes: int) -> bytes:
    sums = BlockSums()
    for first in range(0, num_bytes, 1000 * BLOCK_BYTES):
        sums.add(bytes(min(1000 * BLOCK_BYTES, num_bytes - first)))
    return sums.finish()


def draw_offsets(generator: np.random.Generator) -> NDArray[np.int64]:
    """Offsets of documents of log-normal lengths that add up to a shard."""
    lengths = generator.lognormal(sigma=1.0, size=SHARD_DOCUMENTS)
    ends = np.round(np.cumsum(lengths) * (SHARD_TOKENS - SHARD_DOCUMENTS) / lengths.sum()).astype(np.int64)
    return np.append(0, ends + np.arange(1, SHARD_DOCUMENTS + 1))  # at least one token each


def measure(folder: Path) -> dict[str, Any]:
    imported = resident_bytes()
    opened, opening = timed(lambda: TokenShards.open(folder))
    settings = {"sequence_length": LENGTH, "vocabulary": vocabulary(), "validation_fraction": VALIDATION_FRACTION}
    rows, packing = timed(lambda: PackedRows(opened, split="train", **settings))
    held_out, packing_held_out = timed(lambda: PackedRows(opened, split="validation", **settings))
    source = MaskedLMSource(
        rows,
        vocabulary=settings["vocabulary"],
        masking=MaskingOptions(),
        micro_batch_size=MICRO_BATCH,
        accumulation_steps=ACCUMULATION,
        seed=SEED,
    )
    before = resident_bytes()
    first = timed(lambda: source.step(0))[1]
    after_first = resident_bytes()
    steps = [timed(lambda step=step: source.step(step))[1] for step in range(1, STEPS)]
    places = np.random.default_rng(SEED).integers(source.steps_per_epoch, size=JUMPS).tolist()
    jumps = [timed(lambda step=step: source.step(step))[1] for step in places]
    share = [timed(lambda step=step: source.step(step, share=(1, PROCESSES)))[1] for step in places]
    reads = [timed(lambda step=step: read_rows(rows, step))[1] for step in places]
    orders = [timed(lambda step=step: samples_of(rows, step))[1] for step in places]
    return {
        "rows": len(rows),
        "held_out_rows": len(held_out),
        "rows_per_step": source.samples_per_step,
        "seconds": {
            "open_shards": opening,
            "open_train_rows": packing,
            "open_held_out_rows": packing_held_out,
            "first_step": first,
            "next_steps": spread(steps),
            "jumps_to_random_steps": spread(jumps),
            f"share_of_one_of_{PROCESSES}_processes": spread(share),
            "rows_alone_without_masks": spread(reads),
            "order_alone": spread(orders),
        },
        "resident_bytes": {
            "after_imports": imported,
            "opened": before,
            "after_the_first_step": after_first,
            "at_the_end": resident_bytes(),
            "most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            "a_permutation_in_memory_would_take": 8 * len(rows),
        },
    }


def samples_of(rows: PackedRows, step: int) -> list[tuple[int, int]]:
    return global_samples(step, batch_size=MICRO_BATCH * ACCUMULATION, num_samples=len(rows), seed=SEED)


def read_rows(rows: PackedRows, step: int) -> None:
    for _, row in samples_of(rows, step):
        rows.row(row)


def vocabulary() -> Vocabulary:
    """Ids 1 to 5 are special; 0, which all tokens are, is an ordinary word."""
    special = np.zeros(VOCAB_SIZE, dtype=np.bool_)
    special[1:6] = True
    return Vocabulary(
        size=VOCAB_SIZE,
        pad_id=1,
        cls_id=2,
        sep_id=3,
        mask_id=4,
        unk_id=5,
        special=special,
        continues_word=np.zeros(VOCAB_SIZE, dtype=np.bool_),
    )


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, processor = time.perf_counter(), time.process_time()
    value = function()
    return value, {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def spread(times: list[dict[str, float]]) -> dict[str, float]:
    wall = [found["wall"] for found in times]
    return {
        "wall_median": statistics.median(wall),
        "wall_most": max(wall),
        "processor_median": statistics.median(found["processor"] for found in times),
    }


def resident_bytes() -> int:
    """Resident memory now, where /proc tells it; else the most there was so far."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
