"""Shards damaged while a run reads them: an error that names the file, and a run that goes on once it is mended."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sortyard.data import shard_blocks, shard_format
from sortyard.data.batches import Batch, MaskedLMSource
from sortyard.data.options import MaskingOptions
from sortyard.data.order import Share
from sortyard.data.packing import PackedRows
from sortyard.data.shard_format import INDEX_NAME, ShardIndex
from sortyard.data.shard_writing import ShardWriter
from sortyard.data.shards import TokenShards
from sortyard.data.vocabulary import Vocabulary
from sortyard.errors import InputError
from sortyard.runs.folder import RunFolder
from tests.training.tiny import VOCAB, new_run, same_bits, tensors_of, train_tiny

STEPS, DAMAGED_STEP = 8, 5
VOCABULARY = Vocabulary(
    size=VOCAB, pad_id=0, cls_id=2, sep_id=3, mask_id=4, unk_id=1,
    special=np.arange(VOCAB) < 5, continues_word=np.arange(VOCAB) % 3 == 0,
)  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards; more than a block of offsets each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    generator = np.random.default_rng(0)
    written = []
    for number in range(3):
        writer = ShardWriter(folder, number=number, dtype="<u2")
        for length in generator.integers(1, 40, size=700):
            writer.add(generator.integers(5, VOCAB, size=length), 0)
        written.append(writer.finish())
    index = ShardIndex(
        complete=True, tokenizer_sha256="", source_sha256="", reading={}, dtype="<u2", shards=tuple(written), skipped={}
    )
    (folder / INDEX_NAME).write_text(index.model_dump_json())
    return folder


def source_of(folder: Path) -> MaskedLMSource:
    rows = PackedRows(TokenShards.open(folder), sequence_length=32, vocabulary=VOCABULARY, validation_fraction=0.1)
    sizes = {"micro_batch_size": 8, "accumulation_steps": 1, "seed": 0}
    return MaskedLMSource(rows, vocabulary=VOCABULARY, masking=MaskingOptions(), **sizes)


class Fed:
    """A source as the small model takes it, to which something happens before a step."""

    def __init__(self, source: MaskedLMSource, *, before: Callable[[int], None] = lambda step: None) -> None:
        self.source = source
        self.before = before
        self.samples_per_step = source.samples_per_step
        self.steps_per_epoch = source.steps_per_epoch

    def step(self, step: int, *, share: Share = (0, 1)) -> list[Batch]:
        self.before(step)
        batches = self.source.step(step, share=share)
        return [{name: value for name, value in batch.items() if name != "cu_seqlens"} for batch in batches]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[64::128] = bytes(value ^ 1 for value in data[64::128])
    with path.open("r+b") as file:
        file.write(data)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 8)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = [
    ("tokens-00001.bin", flip),
    ("tokens-00001.bin", cut),
    ("tokens-00001.bin", remove),
    ("documents-00001.npy", flip),
    ("checksums-00001.bin", cut),
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several add up gradients in any order, which equal bits would not survive."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_shard_damaged_during_training_is_named_and_the_run_goes_on_when_it_is_mended(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(shard_blocks, "OPEN_FILES", 1)  # or a removed file could still be read
    victim = shards / name
    whole = victim.read_bytes()
    train_tiny(new_run(tmp_path / "whole"), source=Fed(source_of(shards)), steps=STEPS)

    run = new_run(tmp_path / "cut")
    fed = Fed(source_of(shards), before=lambda step: damage(victim) if step == DAMAGED_STEP else None)
    with pytest.raises(InputError, match=name) as caught:
        train_tiny(run, source=fed, steps=STEPS, checkpoint_every=4)
    assert str(shards) in str(caught.value)
    assert "put the original file back" in str(caught.value)
    error = run.read_events()[-1]
    assert (error["event"], error["step"]) == ("error", DAMAGED_STEP)
    assert name in error["message"]
    with pytest.raises(InputError, match=name):
        source_of(shards)

    victim.write_bytes(whole)
    assert train_tiny(run, source=Fed(source_of(shards)), steps=STEPS).state.step == STEPS
    assert same_bits(tensors_of(run, STEPS), tensors_of(RunFolder.open(tmp_path / "whole"), STEPS))


def test_the_order_goes_on_at_another_number_of_processes(shards: Path) -> None:
    expected = [source_of(shards).step(step) for step in range(6)]
    for step, count in enumerate([1, 1, 4, 4, 3, 8]):
        processes = [source_of(shards).step(step, share=(index, count)) for index in range(count)]
        for number, micro_batch in enumerate(expected[step]):
            for name in ("input_ids", "labels", "attention_mask"):
                assert torch.equal(torch.cat([parts[number][name] for parts in processes]), micro_batch[name])


def test_large_shards_are_not_read_at_opening_unless_asked(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_format, "VERIFIED_AT_ONCE", 0)
    flip(shards / "tokens-00002.bin")
    opened = TokenShards.open(shards)
    assert len(opened.document(0)) > 0
    with pytest.raises(InputError, match=r"tokens-00002.bin: its contents differ from the checksums"):
        opened.document(opened.num_documents - 1)
    with pytest.raises(InputError, match=r"tokens-00002.bin: its contents differ from the digest"):
        TokenShards.open(shards, verify="all")
    cut(shards / "checksums-00000.bin")
    with pytest.raises(InputError, match=r"checksums-00000.bin: .* cut short"):
        TokenShards.open(shards)


def without_checksums(folder: Path) -> None:
    """Make shards of version 1, which had none."""
    index = json.loads((folder / INDEX_NAME).read_text()) | {"version": 1}
    for shard in index["shards"]:
        (folder / shard.pop("checksums")).unlink()
    (folder / INDEX_NAME).write_text(json.dumps(index))


def test_shards_of_the_first_version_are_read_and_verified_whatever_their_size(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = source_of(shards).step(3)[0]["input_ids"]
    without_checksums(shards)
    monkeypatch.setattr(shard_format, "VERIFIED_AT_ONCE", 0)
    assert torch.equal(source_of(shards).step(3)[0]["input_ids"], expected)
    opened = TokenShards.open(shards)
    cut(shards / "tokens-00001.bin")
    with pytest.raises(InputError, match=r"tokens-00001.bin: cut short"):
        opened.document(1399)
    flip(shards / "documents-00000.npy")
    with pytest.raises(InputError, match=r"documents-00000.npy: its contents differ from the digest"):
        TokenShards.open(shards)
    with pytest.raises(InputError, match=r"documents-00000.npy: its numbers are out of order"):
        opened.offsets(0, 700)
