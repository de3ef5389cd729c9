import errno
import json
import random
from pathlib import Path

import pytest
import torch

from sortyard.errors import InputError
from sortyard.training import checkpoint
from sortyard.training.checkpoint import DIGESTS, OPTIMIZER, STATE, WEIGHTS, CheckpointStore, Snapshot
from sortyard.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from sortyard.training.options import OptimizerOptions
from sortyard.training.weights import export_model, load_model_tensors, model_tensors
from tests.training.tiny import TinyModel, same_bits

FILES = (WEIGHTS, OPTIMIZER, STATE, DIGESTS)


def snapshot(step, *, best_step=0):
    weights = {"weight": torch.full((8, 8), float(step))}
    return Snapshot(weights, {"exp_avg/weight": torch.zeros(8, 8)}, {"step": step, "best_step": best_step})


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def store(tmp_path, warnings):
    return CheckpointStore(tmp_path, keep=2, warn=warnings.append)


def test_keeps_the_newest_and_points_at_the_last(store):
    for step in (1, 2, 3):
        store.save(snapshot(step))
    assert store.steps() == [2, 3]
    assert (store.folder / "latest").read_text() == "step-00000003\n"
    assert float(store.load_newest().weights["weight"][0, 0]) == 3.0


def test_holds_neither_pickle_nor_leftovers(store):
    store.save(snapshot(1))
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest", "step-00000001"]
    assert sorted(path.name for path in store.path(1).iterdir()) == sorted(FILES)


def test_protects_the_best_of_every_checkpoint_it_keeps(store):
    for step, best_step in [(1, 1), (2, 1), (3, 1), (4, 4)]:
        store.save(snapshot(step, best_step=best_step))
    assert store.steps() == [1, 3, 4], "3 may still be needed, and its best is 1"
    store.save(snapshot(5, best_step=4))
    assert store.steps() == [4, 5]
    assert (store.folder / "best").read_text() == "step-00000004\n"


@pytest.mark.parametrize("name", FILES)
def test_every_bit_flip_is_found(store, warnings, name):
    for step in (1, 2):
        store.save(snapshot(step))
    path = store.path(2) / name
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        position = draw.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        assert store.load(2) is None, f"bit flip at byte {position} of {name}"
        assert str(path.parent if name == DIGESTS else path) in warnings[-1]
    assert store.load_newest().state["step"] == 1
    path.write_bytes(whole)
    assert store.load_newest().state["step"] == 2


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "zeroed", "missing"])
def test_damage_falls_back_to_the_one_before(store, warnings, name, damage):
    for step in (1, 2):
        store.save(snapshot(step))
    path = store.path(2) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncated" else bytes(len(content)))
    assert store.load_newest().state["step"] == 1
    assert str(path) in warnings[0]


def test_says_so_when_all_are_damaged(store):
    store.save(snapshot(1))
    (store.path(1) / STATE).unlink()
    with pytest.raises(InputError, match="all 1 checkpoints are damaged"):
        store.load_newest()


def test_a_given_up_course_makes_way_for_the_new_one(store):
    for step in (4, 8):
        store.save(snapshot(step))
    (store.path(8) / WEIGHTS).write_bytes(b"damaged")
    store.save(snapshot(6))
    assert store.steps() == [4, 6]
    store.save(snapshot(8))
    assert store.load_newest().state["step"] == 8


def test_a_damaged_one_is_replaced_by_its_own_step(store):
    store.save(snapshot(4))
    (store.path(4) / WEIGHTS).write_bytes(b"damaged")
    store.save(snapshot(4))
    assert store.load_newest().state["step"] == 4


def test_leftovers_of_a_kill_are_cleared_away(tmp_path):
    (tmp_path / ".aside-step-00000003").mkdir()
    (tmp_path / ".aside-step-00000003" / WEIGHTS).write_bytes(b"half")
    (tmp_path / ".aside-latest").write_text("")
    store = CheckpointStore(tmp_path, keep=1, warn=print)
    assert store.load_newest() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["first file", "second file", "rename"])
def test_full_disk_names_path_and_bytes_and_leaves_the_last_one(store, monkeypatch, failing):
    store.save(snapshot(1))
    save_file, calls = checkpoint.save_file, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == (1 if failing == "first file" else 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(*args, **kwargs)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "rename":
        monkeypatch.setattr(Path, "rename", fail)
    else:
        monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match=r"step-00000002: .*disk is full; it needs 512 bytes"):
        store.save(snapshot(2))
    assert store.steps() == [1]
    assert store.load_newest().state["step"] == 1
    assert not list(store.folder.glob(".aside*"))


def test_state_must_be_finite_json(store):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(Snapshot({}, {}, {"step": 1, "best_step": 0, "loss": float("nan")}))


def test_model_and_optimizer_come_back_bit_for_bit():
    model = TinyModel()
    optimizer = build_optimizer(model, OptimizerOptions())
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    optimizer.step()
    model.selection_bias += 0.5
    other = TinyModel(seed=1)
    other_optimizer = build_optimizer(other, OptimizerOptions())
    load_model_tensors(other, model_tensors(model))
    load_optimizer_tensors(other_optimizer, other, optimizer_tensors(optimizer, model))
    assert "decoder.weight" not in model_tensors(model), "tied weights are stored once"
    assert same_bits(model_tensors(other), model_tensors(model))
    assert same_bits(optimizer_tensors(other_optimizer, other), optimizer_tensors(optimizer, model))
    assert other.decoder.weight is other.embeddings.weight


def test_checkpoint_of_another_model_is_refused():
    tensors = model_tensors(TinyModel())
    del tensors["gate.weight"]
    with pytest.raises(InputError, match=r"gate\.weight"):
        load_model_tensors(TinyModel(), tensors)


def test_export_leaves_other_files_alone(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({}))
    export_model(TinyModel(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "tokenizer.json"]
