"""The processes of a run in a grid, and this one's place there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sortyard.errors import InputError
from sortyard.parallel.collectives import Group
from sortyard.parallel.options import ParallelOptions

DENSE_DIMS = ("pp", "dp_replicate", "fsdp", "tp")
EXPERT_DIMS = ("pp", "dp_replicate", "dp_shard", "ep", "tp")


@dataclass(frozen=True)
class Layout:
    """Groups of processes, and this one's place in each.

    Args:
        options: the layout's sizes, dp_shard resolved.
        device: where this process computes.
        dense: grid for tensors that expert parallelism repeats; "fsdp" is dp_shard x ep.
        experts: grid for the experts; the same as `dense` but for the cut between dp_shard and ep.
        data: the processes that see different rows of a micro-batch.
    """

    options: ParallelOptions
    device: torch.device
    dense: DeviceMesh
    experts: DeviceMesh
    data: Group

    @classmethod
    def make(cls, options: ParallelOptions, *, device: torch.device) -> "Layout":
        """Build the groups; every process of the run must call this.

        Raises:
            InputError: the sizes do not multiply to the number of processes.
        """
        options = resolve(options, num_processes=dist.get_world_size())
        fsdp = options.dp_shard * options.ep
        dense = init_device_mesh(
            device.type, (options.pp, options.dp_replicate, fsdp, options.tp), mesh_dim_names=DENSE_DIMS
        )
        experts = dense
        if options.ep > 1:
            sizes = (options.pp, options.dp_replicate, options.dp_shard, options.ep, options.tp)
            experts = init_device_mesh(device.type, sizes, mesh_dim_names=EXPERT_DIMS)
        data = dense.get_group("fsdp")
        if options.dp_replicate > 1:
            grid = (options.pp, options.dp_replicate * fsdp, options.tp)
            data = init_device_mesh(device.type, grid, mesh_dim_names=("pp", "dp", "tp")).get_group("dp")
        # NCCL connects a group in its first exchange, which two alone must not begin: torch's pipelines would between
        # neighbours, and we between their ends, which swap gradients.
        for group in [*dense.get_all_groups(), *experts.get_all_groups(), data]:
            if group.size() > 1:
                dist.all_reduce(torch.zeros(1, device=device), group=group)
        return cls(options, device, dense, experts, data)

    def group(self, dim: str) -> Group:
        """Those that this process shares a dim with: "tp" each layer, "ep" the experts, "pp" the layers in turn."""
        return (self.experts if dim == "ep" else self.dense).get_group(dim)

    def rank(self, dim: str) -> int:
        """Place among them."""
        return self.group(dim).rank()


def resolve(options: ParallelOptions, *, num_processes: int) -> ParallelOptions:
    """Give dp_shard the processes that the other dims leave.

    Raises:
        InputError: the sizes do not multiply to the number of processes.
    """
    sizes = {name: getattr(options, name) for name in ("pp", "dp_replicate", "ep", "tp")}
    others = prod(sizes.values())
    shard = options.dp_shard or max(1, num_processes // others)
    if others * shard != num_processes:
        named = " x ".join(f"{name} {size}" for name, size in {**sizes, "dp_shard": options.dp_shard}.items())
        raise InputError(
            f"parallel: {named} does not come to {num_processes} processes; start {others * max(1, options.dp_shard)}, "
            "or change the sizes (dp_shard 0 takes what the others leave)"
        )
    return options.model_copy(update={"dp_shard": shard})


def num_processes() -> int:
    """How many processes of this run have met; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_one_of_many() -> bool:
    """Whether this process has met others of the same run."""
    return num_processes() > 1


def is_first() -> bool:
    """Whether this process is the one that writes records, or the only one."""
    return not is_one_of_many() or dist.get_rank() == 0


def num_started() -> int:
    """How many processes torchrun, or sortyard itself, started for this run; 0 where a person started this one."""
    return int(os.environ.get("WORLD_SIZE", "0")) if "RANK" in os.environ else 0


def was_started_as_one_of_many() -> bool:
    """Whether torchrun, or sortyard itself, started this process as one of several."""
    return num_started() > 1


@contextmanager
def wait_for_first() -> Iterator[None]:
    """Let the first process go ahead; the others begin when it is through, however long it takes.

    Raises:
        InputError: in the others, when the first one failed or is gone.
    """
    if not is_one_of_many():
        yield
        return
    from sortyard.parallel.peers import Group

    talk = Group.of_all()
    if not is_first() and not talk.share(None):
        raise InputError("the first process could not do what the others need")
    done = False
    try:
        yield
        done = True
    finally:
        if is_first():
            talk.share(done)


def join_processes(*, device: torch.device, timeout_seconds: float) -> None:
    """Meet the other processes; does nothing when they have met.

    Args:
        device: where this process will compute.
        timeout_seconds: how long an exchange may take before the run ends.

    Raises:
        InputError: there are fewer GPUs here than processes, or a restart would fail.
    """
    if dist.is_initialized():
        return
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        if place >= torch.cuda.device_count():
            raise InputError(
                f"this machine has {torch.cuda.device_count()} GPU(s) and at least {place + 1} processes: start as "
                "many as there are GPUs, or set loop.device to cpu"
            )
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=timeout)
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _fresh_store(world, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


def _fresh_store(world: int, *, timeout: timedelta) -> Any:
    """Where the processes meet: torchrun's own store, but not what a start before left there (pytorch issue 135712).

    The number of the start tells them apart, which torchrun counts by the machine, so that on several it may differ.
    """
    can_restart = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if can_restart and int(os.environ.get("LOCAL_WORLD_SIZE", "0")) != world:
        raise InputError(
            "torchrun --max-restarts on several machines needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's "
            "environment on each of them, or processes that start again meet those before them"
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world_size=world, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"start-{start}", store)  # type: ignore[attr-defined]
