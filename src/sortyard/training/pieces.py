"""Tensors in pieces: what a process owns of each, and how any part of a tensor is put together from files of pieces."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sortyard.errors import InputError, first_line

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset, shape
WHOLES = "wholes"  # in a file's metadata: the whole shapes of the tensors that it holds parts of


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, with its values.

    Args:
        name: the tensor's.
        whole: shape of the whole tensor.
        offset: where the box begins in it.
        tensor: the values; its shape is the box's.
    """

    name: str
    whole: tuple[int, ...]
    offset: tuple[int, ...]
    tensor: Tensor

    @classmethod
    def all_of(cls, name: str, tensor: Tensor) -> "Piece":
        """The one piece of a tensor that is not cut."""
        return cls(name, tuple(tensor.shape), (0,) * tensor.ndim, tensor.detach())

    @property
    def key(self) -> str:
        """Name in a file: the tensor's own, and "name@4,0" for a part of it."""
        is_whole = self.whole == tuple(self.tensor.shape)
        return self.name if is_whole else f"{self.name}@{','.join(map(str, self.offset))}"

    def copied(self) -> "Piece":
        """The same in memory of its own, on the CPU."""
        copy = torch.empty(self.tensor.shape, dtype=self.tensor.dtype)
        return replace(self, tensor=copy.copy_(self.tensor))


def write_pieces(pieces: Iterable[Piece], path: Path) -> None:
    """Write pieces into one safetensors file; whole tensors are stored as transformers stores them."""
    by_key = {piece.key: piece for piece in pieces}
    wholes = {key: piece.whole for key, piece in by_key.items() if key != piece.name}
    metadata = {"format": "pt"} | ({WHOLES: json.dumps(wholes)} if wholes else {})
    save_file({key: _apart(piece.tensor) for key, piece in by_key.items()}, path, metadata=metadata)


def _apart(tensor: Tensor) -> Tensor:
    """The tensor on the CPU and alone in its memory: safetensors refuses one that may share it with others."""
    dense = tensor.cpu().contiguous()
    return dense if dense.untyped_storage().nbytes() == dense.nbytes else dense.clone()


class PieceFiles:
    """Reads tensors from the files that hold their pieces, however they were cut; opens each file once.

    Args:
        paths: all files; together they hold every element of every tensor.

    Raises:
        InputError: a file is no safetensors file, or a tensor is not whole.
    """

    def __init__(self, paths: Iterable[Path]):
        self._boxes: dict[str, dict[Box, tuple[Any, str]]] = {}  # where each box of a tensor lies: file and key
        self._wholes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            try:
                self._index(path)
            except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
                raise InputError(f"{path}: holds no sound pieces of tensors: {first_line(error)}") from error
        for name, boxes in self._boxes.items():
            _check_cover(name, self._wholes[name], list(boxes))

    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._wholes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a whole tensor."""
        if name not in self._wholes:
            raise InputError(f"the checkpoint has no tensor {name}")
        return self._wholes[name]

    def read(self, name: str, box: Box | None = None) -> Tensor:
        """A box of a tensor, put together from whatever pieces overlap it, and nothing else is read.

        Args:
            name: the tensor's.
            box: offset and shape; None reads all of it.
        """
        whole = self.shape(name)
        offset, shape = box if box is not None else ((0,) * len(whole), whole)
        if not _fits(offset, shape, whole):
            raise InputError(f"{name}: the box at {offset} of shape {shape} lies outside of the tensor's {whole}")
        result: Tensor | None = None
        for piece_box, (file, key) in self._boxes[name].items():
            shared = _overlap((offset, shape), piece_box)
            if shared is None:
                continue
            part = file.get_slice(key)[_slices(shared, origin=piece_box[0])]
            if result is None:
                result = torch.empty(shape, dtype=part.dtype)
            result[_slices(shared, origin=offset)] = part
        if result is None:  # no element is asked for
            file, key = next(iter(self._boxes[name].values()))
            result = file.get_tensor(key).new_empty(shape)
        return result

    def _index(self, path: Path) -> None:
        file: Any = safe_open(path, framework="pt")
        wholes = json.loads((file.metadata() or {}).get(WHOLES, "{}"))
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            shape = tuple(file.get_slice(key).get_shape())
            name, whole, offset = key, shape, (0,) * len(shape)
            if key in wholes:
                name, _, numbers = key.rpartition("@")
                whole, offset = tuple(map(int, wholes[key])), tuple(map(int, numbers.split(",")))
            if not _fits(offset, shape, whole) or self._wholes.setdefault(name, whole) != whole:
                raise ValueError(f"{key} does not fit into a tensor of shape {self._wholes.get(name, whole)}")
            self._boxes.setdefault(name, {})[offset, shape] = (file, key)


def _fits(offset: Sequence[int], shape: Sequence[int], whole: Sequence[int]) -> bool:
    is_inside = (begin >= 0 and begin + size <= end for begin, size, end in zip(offset, shape, whole, strict=False))
    return len(offset) == len(shape) == len(whole) and all(is_inside)


def _check_cover(name: str, whole: tuple[int, ...], boxes: list[Box]) -> None:
    """Refuse pieces that overlap or leave a hole; a box that several processes wrote counts once."""
    found = sum(prod(shape) for _, shape in boxes)
    overlaps = any(True for _ in _overlapping(boxes))
    if overlaps or found != prod(whole):
        what = "overlap" if overlaps else f"hold {found:,} of {prod(whole):,} elements"
        raise InputError(
            f"the pieces of the tensor {name} {what}: a file of the checkpoint is missing or of another one"
        )


def _overlapping(boxes: list[Box]) -> Iterator[tuple[Box, Box]]:
    """Pairs of boxes that overlap; sorted, so that a tensor cut along its first dimension takes linear time."""
    ordered = sorted(box for box in boxes if prod(box[1]))
    for place, box in enumerate(ordered):
        end = box[0][0] + box[1][0] if box[0] else 1
        for other in ordered[place + 1 :]:
            if other[0] and other[0][0] >= end:
                break
            if _overlap(box, other) is not None:
                yield box, other


def _overlap(one: Box, other: Box) -> Box | None:
    """The box that two boxes share; None where they share no element, but for empty boxes that are the same."""
    if one == other:
        return one
    offset = tuple(map(max, one[0], other[0]))
    ends = (min(a + n, b + m) for a, n, b, m in zip(*one, *other, strict=True))
    shape = tuple(end - begin for begin, end in zip(offset, ends, strict=True))
    return (offset, shape) if all(size > 0 for size in shape) else None


def _slices(box: Box, *, origin: tuple[int, ...]) -> tuple[Any, ...]:
    ends = zip(*box, origin, strict=True)
    return tuple(slice(begin - base, begin - base + size) for begin, size, base in ends) or (...,)
