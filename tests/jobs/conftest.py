"""Processes that are only pretended: their messages go nowhere, their shards are real."""

from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist


@pytest.fixture
def pretended_processes() -> Iterator[Callable[[int], None]]:
    """Starts the first process of a group whose others do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def start(number: int) -> None:
        dist.init_process_group("fake", rank=0, world_size=number, store=FakeStore())

    yield start
    if dist.is_initialized():
        dist.destroy_process_group()
