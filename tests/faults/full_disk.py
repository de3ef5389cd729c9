"""A store of checkpoints on a disk that is full at some byte; run as a program, in a file system made for it.

Used by test_disks.py and by benchmarks/reliability.py.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sortyard.errors import InputError
from sortyard.training.checkpoint import CheckpointStore, Snapshot
from sortyard.training.pieces import Piece
from tests.faults.threads import together

ROOT = Path(__file__).resolve().parents[2]
DISK_BYTES = 4 << 20
MOUNT = f'mount -t tmpfs -o size={DISK_BYTES} disk "$1" && shift && exec "$@"'
PAGE = 4096


def fill_disks(folder: Path, *, points: int, seed: int) -> list[dict[str, Any]] | None:
    """Save on disks with room for a part of a checkpoint; None where no file system can be mounted."""
    words = [sys.executable, "-m", "tests.faults.full_disk", str(folder), str(points), str(seed)]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", MOUNT, "sh", str(folder), *words],
            capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, timeout=600, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    if "unshare" in done.stderr or "mount" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def snapshot(step: int, *, rank: int, size: int) -> Snapshot:
    rows, value = 240 // size, torch.full((240, 600), float(step))
    weights = [Piece("w", (240, 600), (rank * rows, 0), value[rank * rows : (rank + 1) * rows])]
    return Snapshot(weights, [Piece.all_of("m", torch.full((1000,), float(step)))], {"step": step, "best_step": 0})


def one_point(folder: Path, *, room: int, size: int, asynchronous: bool) -> dict[str, Any]:
    """Save a first checkpoint, leave so much room, save a second one, then make room and save a third."""
    filler = folder / "filler"

    def work(peers: Any) -> str:
        store = CheckpointStore(folder / "c", keep=2, warn=print, peers=peers, in_background=asynchronous)
        store.prepare()
        store.save(snapshot(1, rank=peers.rank, size=size))
        store.wait()
        peers.barrier()
        if peers.rank == 0:
            filler.write_bytes(bytes(max(0, os.statvfs(folder).f_bavail * PAGE - room)))
        peers.barrier()
        message = ""
        try:
            store.save(snapshot(2, rank=peers.rank, size=size))
            store.wait()
        except InputError as error:
            message = str(error)
        peers.barrier()
        if peers.rank == 0:
            newest, first = store.steps()[-1], _value(store, 1)
            asides = len(list(store.folder.glob(".aside*")))
            filler.unlink()
            found.update(first=first, asides=asides, newest=newest, newest_value=_value(store, newest))
        peers.barrier()
        store.save(snapshot(3, rank=peers.rank, size=size))
        store.wait()
        return message

    found: dict[str, Any] = {}
    messages = together(size, work)
    alone = CheckpointStore(folder / "c", keep=2, warn=print)
    return {
        "room": room,
        "processes": size,
        "asynchronous": asynchronous,
        "failed": bool(messages[0]),
        "explained": all(str(message) == messages[0] for message in messages)
        and (not messages[0] or ("step-00000002" in messages[0] and "the disk is full; it needs" in messages[0])),
        "first_intact": found["first"] == 1.0,
        "newest_intact": found["newest_value"] == found["newest"],
        "leftovers": found["asides"],
        "went_on": _value(alone, 3) == 3.0,
    }


def _value(store: CheckpointStore, step: int) -> float:
    checkpoint = CheckpointStore(store.folder, keep=1, warn=print).load(step)  # by one process
    values = set() if checkpoint is None else set(checkpoint.read("model", "w").flatten().tolist())
    return values.pop() if len(values) == 1 else float("nan")


def main(folder: Path, points: int, seed: int) -> None:
    draw = random.Random(seed)
    needed = snapshot(1, rank=0, size=1).num_bytes()
    for number in range(points):
        size = (1, 4)[number % 2]
        end = needed + 8 * PAGE * size  # most points lie in the tensors, a third in what is written after them
        room = draw.randrange(0, needed) if draw.random() < 0.66 else draw.randrange(needed - 4 * PAGE, end)
        place = folder / str(number)
        place.mkdir()
        print(json.dumps(one_point(place, room=room, size=size, asynchronous=number % 4 > 1)), flush=True)
        subprocess.run(["rm", "-rf", str(place)], check=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
