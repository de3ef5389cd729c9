"""Disks that are full, and disks that give back something else than was written."""

import random
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sortyard.errors import InputError
from sortyard.training import pieces
from sortyard.training.checkpoint import CheckpointStore
from tests.faults.corruption import corrupt
from tests.faults.full_disk import fill_disks, snapshot
from tests.faults.threads import together


def store_of(folder: Path, peers=None, warn=print) -> CheckpointStore:
    return CheckpointStore(folder, keep=2, warn=warn, **({} if peers is None else {"peers": peers}))


def save(folder: Path, step: int, *, size: int) -> list[object]:
    def work(peers):
        store = store_of(folder, peers)
        store.prepare()
        store.save(snapshot(step, rank=peers.rank, size=size))

    return together(size, work)


def loaded_steps(folder: Path, *, size: int, warn) -> list[object]:
    return together(size, lambda peers: store_of(folder, peers, warn).load_newest().state["step"])


def test_a_disk_that_is_full_at_any_point_costs_nothing(tmp_path):
    found = fill_disks(tmp_path, points=12, seed=0)
    if found is None:
        pytest.skip("no file system can be mounted here")
    assert any(point["failed"] for point in found)
    assert not all(point["failed"] for point in found)
    for point in found:
        good = [point[name] for name in ("explained", "first_intact", "newest_intact", "went_on")]
        assert all(good), point
        assert point["leftovers"] == 0


LIMITED = """
    import resource, sys
    from pathlib import Path
    from tests.faults.test_disks import save, store_of
    folder, limits = Path(sys.argv[1]), map(int, sys.argv[2:])
    print(save(folder, 1, size=1))
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        print(save(folder, 2, size=1)[0], store_of(folder).steps(), [path.name for path in folder.glob(".aside*")])
"""


def test_a_file_that_cannot_grow_beyond_a_byte_is_said(tmp_path):
    assert resource.RLIMIT_FSIZE
    limits = ["0", "1", "7", "150", "575999", "576090"]
    program = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path), *limits]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2])
    lines = done.stdout.splitlines()
    assert lines[0] == "[None]"
    assert len(lines) == 1 + len(limits)
    for line in lines[1:]:
        assert "step-00000002: the checkpoint cannot be written: " in line
        assert "it needs 580,000 bytes" in line
        assert line.endswith("[1] []"), line


@pytest.mark.parametrize("failing", range(4))
def test_what_fails_on_one_process_fails_on_all_in_the_same_words(tmp_path, monkeypatch, failing):
    assert save(tmp_path, 1, size=4) == [None] * 4
    write = pieces.save_file

    def full(tensors, path, **words):
        if f"optimizer-0000{failing + 1}" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(tensors, path, **words)

    monkeypatch.setattr(pieces, "save_file", full)
    errors = save(tmp_path, 2, size=4)
    assert all(isinstance(error, InputError) for error in errors)
    assert len(set(map(str, errors))) == 1
    assert f"process {failing}: the disk is full; it needs 592,000 bytes" in str(errors[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    monkeypatch.undo()
    assert save(tmp_path, 2, size=4) == [None] * 4
    assert store_of(tmp_path).load(2).read("model", "w").unique().tolist() == [2.0]


@pytest.mark.parametrize("size", [1, 4])
def test_random_damage_to_any_file_is_noticed_and_named(tmp_path, size):
    for step in (1, 2):
        save(tmp_path, step, size=size)
    draw = random.Random(size)
    for path in sorted((tmp_path / "step-00000002").iterdir()):
        for kind in ("bit", "block", "truncated"):
            whole = path.read_bytes()
            path.write_bytes(corrupt(whole, kind=kind, draw=draw))
            told: list[str] = []
            assert loaded_steps(tmp_path, size=size, warn=told.append) == [1] * size
            assert len(told) == 1
            assert str(path) in told[0]
            path.write_bytes(whole)
    assert loaded_steps(tmp_path, size=size, warn=print) == [2] * size
