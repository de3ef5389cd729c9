import errno
import json
import random
import threading
from pathlib import Path

import pytest
import torch

from sortyard.errors import InputError
from sortyard.training import pieces
from sortyard.training.checkpoint import STATE, CheckpointStore, Snapshot
from sortyard.training.digests import DIGESTS, digest_of
from sortyard.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from sortyard.training.options import OptimizerOptions
from sortyard.training.pieces import Piece, write_pieces
from sortyard.training.weights import export_model, load_model_tensors, model_tensors
from tests.faults.threads import together
from tests.training.tiny import TinyModel, by_name, same_bits

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
FILES = (WEIGHTS, OPTIMIZER, STATE, DIGESTS)


def snapshot(step, *, best_step=0):
    weights = [Piece.all_of("weight", torch.full((8, 8), float(step)))]
    moments = [Piece.all_of("exp_avg/weight", torch.zeros(8, 8))]
    return Snapshot(weights, moments, {"step": step, "best_step": best_step})


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def store(tmp_path, warnings):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2, warn=warnings.append)
    store.prepare()
    return store


def test_keeps_the_newest_and_points_at_the_last(store):
    for step in (1, 2, 3):
        store.save(snapshot(step))
    assert store.steps() == [2, 3]
    assert (store.folder / "latest").read_text() == "step-00000003\n"
    assert float(store.load_newest().read("model", "weight")[0, 0]) == 3.0


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
        assert str(path) in warnings[-1]
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


def test_a_kill_while_a_checkpoint_is_replaced_loses_none(store, monkeypatch):
    store.save(snapshot(1))
    store.save(snapshot(2))
    rename, names = Path.rename, []

    def killed(path, target):
        names.append(path.name)
        if path.name.startswith(".aside-step"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(snapshot(2))
    assert names == ["step-00000002", ".aside-step-00000002"]
    monkeypatch.undo()
    store.prepare()
    assert store.load_newest().state["step"] == 2
    store.save(snapshot(2))
    assert store.load_newest().state["step"] == 2
    assert sorted(path.name for path in store.folder.iterdir()) == ["latest", "step-00000001", "step-00000002"]


def test_leftovers_of_a_kill_are_cleared_away(tmp_path):
    (tmp_path / ".aside-step-00000003").mkdir()
    (tmp_path / ".aside-step-00000003" / WEIGHTS).write_bytes(b"half")
    (tmp_path / ".aside-latest").write_text("")
    store = CheckpointStore(tmp_path, keep=1, warn=print)
    assert len(list(tmp_path.iterdir())) == 2, "who only reads must not disturb a save that is under way"
    store.prepare()
    assert store.load_newest() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["first file", "second file", "rename"])
def test_full_disk_names_path_and_bytes_and_leaves_the_last_one(store, monkeypatch, failing):
    store.save(snapshot(1))
    save_file, calls = pieces.save_file, []

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
        monkeypatch.setattr(pieces, "save_file", full)
    with pytest.raises(InputError, match=r"step-00000002: .*disk is full; it needs 512 bytes"):
        store.save(snapshot(2))
    assert store.steps() == [1]
    assert store.load_newest().state["step"] == 1
    assert not list(store.folder.glob(".aside*"))


def test_state_must_be_finite_json(store):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(Snapshot([], [], {"step": 1, "best_step": 0, "loss": float("nan")}))


def test_best_names_no_checkpoint_that_is_not_there(store):
    store.save(snapshot(2, best_step=1))
    assert not (store.folder / "best").exists()
    store.save(snapshot(3, best_step=2))
    assert (store.folder / "best").read_text() == "step-00000002\n"


def test_an_error_of_any_kind_in_one_process_fails_all_of_them_alike(tmp_path, monkeypatch):
    def fails(pieces, path):
        if "-00002-of-" in path.name:
            raise RuntimeError("the device is lost")
        write_pieces(pieces, path)

    def work(peers):
        store = CheckpointStore(tmp_path / "checkpoints", keep=2, warn=lambda _: None, peers=peers)
        store.prepare()
        store.save(snapshot(1))

    monkeypatch.setattr("sortyard.training.checkpoint.write_pieces", fails)
    for error in together(2, work):
        assert isinstance(error, InputError)
        assert "process 1: the device is lost" in str(error)


def test_model_and_optimizer_come_back_bit_for_bit():
    model = TinyModel()
    optimizer = build_optimizer(model, OptimizerOptions())
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    optimizer.step()
    model.selection_bias += 0.5
    other = TinyModel(seed=1)
    other_optimizer = build_optimizer(other, OptimizerOptions())
    weights, moments = by_name(model_tensors(model)), by_name(optimizer_tensors(optimizer, model))
    load_model_tensors(other, weights)
    load_optimizer_tensors(other_optimizer, other, moments)
    assert "decoder.weight" not in weights, "tied weights are stored once"
    assert same_bits(by_name(model_tensors(other)), weights)
    assert same_bits(by_name(optimizer_tensors(other_optimizer, other)), moments)
    assert other.decoder.weight is other.embeddings.weight


def test_checkpoint_of_another_model_is_refused():
    tensors = by_name(model_tensors(TinyModel()))
    del tensors["gate.weight"]
    with pytest.raises(InputError, match=r"gate\.weight"):
        load_model_tensors(TinyModel(), tensors)


def test_export_leaves_other_files_alone(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({}))
    export_model(TinyModel(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "tokenizer.json"]


def test_a_list_without_a_digest_of_its_own_is_damaged(store):
    store.save(snapshot(1))
    folder = store.path(1)
    digests = {name: digest_of(folder / name) for name in (WEIGHTS, OPTIMIZER, STATE)}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1))
    assert store.load(1) is None
    (folder / DIGESTS).write_text(json.dumps({}, indent=1))
    assert store.load(1) is None


@pytest.mark.parametrize("name", ["weights.pt", "rogue.safetensors"])
def test_what_a_checkpoint_does_not_list_is_refused(store, warnings, name):
    store.save(snapshot(1))
    (store.path(1) / name).write_bytes(b"")
    assert store.load(1) is None
    assert f"{store.path(1) / name} is no file of a checkpoint" in warnings[0]


@pytest.fixture
def background(tmp_path, warnings):
    with CheckpointStore(tmp_path / "behind", keep=2, warn=warnings.append, in_background=True) as store:
        store.prepare()
        yield store


@pytest.fixture
def held_back(monkeypatch):
    """Writing waits until the event is set."""
    may_write, write = threading.Event(), pieces.save_file
    monkeypatch.setattr(pieces, "save_file", lambda *args, **words: may_write.wait(60) and write(*args, **words))
    yield may_write
    may_write.set()


def test_a_save_in_the_background_holds_what_was_there_when_it_began(background, held_back):
    weights, notes = torch.zeros(4), []
    taken = Snapshot([Piece.all_of("weight", weights)], [], {"step": 1, "best_step": 0})
    background.save(taken, on_durable=lambda: notes.append(background.steps()))
    weights += 1
    assert (background.steps(), notes) == ([], [])
    assert not (background.folder / "latest").exists()
    held_back.set()
    background.wait()
    assert notes == [[1]]
    assert background.load(1).read("model", "weight").sum() == 0


def test_only_what_is_durable_displaces_others(background, held_back):
    held_back.set()
    for step in (1, 2):
        background.save(snapshot(step))
    background.wait()
    held_back.clear()
    background.save(snapshot(3))
    assert background.steps() == [1, 2]
    assert (background.folder / "latest").read_text() == "step-00000002\n"
    held_back.set()
    background.save(snapshot(4))  # waits for the one before
    assert 3 in background.steps()


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_in_the_background_is_raised_by_the_next_call(background, monkeypatch):
    background.save(snapshot(1))
    background.wait()
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "save_file", full)
        background.save(snapshot(2))
        with pytest.raises(InputError, match=r"step-00000002: .*disk is full; it needs 512 bytes"):
            background.save(snapshot(3))
    background.save(snapshot(4))
    background.wait()
    assert background.steps() == [1, 4]


def test_an_error_in_the_background_does_not_hide_what_broke_the_run_off(tmp_path, warnings, monkeypatch):
    monkeypatch.setattr(pieces, "save_file", full)
    with (  # noqa: PT012 - leaving the store is what is tested
        pytest.raises(RuntimeError, match="first"),
        CheckpointStore(tmp_path, keep=1, warn=warnings.append, in_background=True) as store,
    ):
        store.save(snapshot(1))
        raise RuntimeError("first")
    assert "the disk is full" in warnings[0]
