"""Several processes on one GPU: gloo carries between them what NCCL would, which wants a GPU for each process.

All else is as on several GPUs: the tensors, groups, streams and checkpoints of every process are the GPU's.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d


@dataclass(frozen=True)
class _Carried:
    """A tensor on its way by the host's memory, as gloo sends none from a GPU's."""

    work: Any
    host: Tensor
    goal: Tensor | None = None

    def wait(self) -> bool:
        self.work.wait()
        if self.goal is not None:
            self.goal.copy_(self.host)
        return True


def share_gpu() -> None:
    """Let this process, and others that call this too, meet on the first GPU as if each had one of its own."""
    begin, send, receive = dist.init_process_group, dist.isend, dist.irecv
    torch.cuda.set_device(0)
    torch.zeros(1, device="cuda")  # a mesh of devices would choose one by the process's number otherwise

    def init_process_group(_backend: str, **settings: Any) -> None:
        begin("gloo", **settings)

    def isend(tensor: Tensor, *args: Any, **settings: Any) -> Any:
        host = tensor.detach().cpu()
        return _Carried(send(host, *args, **settings), host)

    def irecv(tensor: Tensor, *args: Any, **settings: Any) -> Any:
        host = torch.empty_like(tensor, device="cpu")
        return _Carried(receive(host, *args, **settings), host, tensor)

    torch.cuda.device_count = lambda: 16
    torch.cuda.set_device = lambda _: None
    dist.init_process_group = init_process_group
    for module in (dist, distributed_c10d):  # the second compares what it is given with its own names
        module.isend, module.irecv = isend, irecv
