"""One process that takes the place of any among many which are not there, to try a layout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from sortyard.errors import InputError


@contextmanager
def one_of_many(rank: int, *, num_processes: int) -> Iterator[None]:
    """Be a process of a large run whose exchanges move nothing: shapes are right, values are not.

    Args:
        rank: whose place to take.
        num_processes: of the run.

    Raises:
        InputError: this torch cannot do so, or the process has met others already.
    """
    try:
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:  # a private part of torch, which its versions may move
        raise InputError("this version of torch has no fake processes: try the layout in real ones") from error
    if dist.is_initialized():
        raise InputError("a layout is tried by one process alone, without torchrun")
    dist.init_process_group("fake", rank=rank, world_size=num_processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
