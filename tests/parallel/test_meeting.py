"""What NCCL asks for that gloo does not, as far as it can be seen without several GPUs."""

import pytest
import torch
import torch.distributed as dist

from sortyard.errors import LostProcessError
from sortyard.parallel.mesh import Layout
from sortyard.parallel.options import ParallelOptions
from sortyard.parallel.peers import told_of_losses
from sortyard.parallel.pretending import one_of_many

SET_UP = "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error. Last error: no space left in /dev/shm"
REMOTE = "NCCL error in: ProcessGroupNCCL.cpp:94, remote process exited. ncclRemoteError: A call failed possibly"


def test_every_group_meets_as_a_whole_before_two_of_it_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL connects a group in its first exchange, for which it waits for all of it."""
    met = []
    exchange = dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: met.append(group) or exchange(tensor, group=group))
    with one_of_many(5, num_processes=24):
        options = ParallelOptions(pp=3, ep=2, tp=2, dp_replicate=2)
        layout = Layout.make(options, device=torch.device("cpu"))
        wanted = [layout.group(dim) for dim in ("pp", "tp", "ep", "dp_replicate")] + [layout.data]
        assert all(any(group is each for each in met) for group in wanted)


def test_what_keeps_nccl_from_starting_is_no_lost_process() -> None:
    with pytest.raises(dist.DistBackendError, match="no space left"), told_of_losses():
        raise dist.DistBackendError(SET_UP)
    with pytest.raises(LostProcessError, match="is gone or does not answer"), told_of_losses():
        raise dist.DistBackendError(REMOTE)
