"""Starting the processes of a run on this machine, by torch's elastic agent: what torchrun does, from Python."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

import torch

from sortyard.parallel.options import ParallelOptions


def processes_here(options: ParallelOptions, *, device: str) -> int:
    """Processes to start on this machine for a layout: dp_shard 0 takes every GPU, and on a CPU one.

    Args:
        options: the layout.
        device: `auto`, `cpu` or `cuda`.
    """
    least = options.num_processes()
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    return least if options.dp_shard else max(1, gpus // least) * least


def start_processes(words: Sequence[str], *, count: int, max_restarts: int) -> int:
    """Run a command line of sortyard in several processes that meet each other, and wait for their end.

    When one of them is lost, the others are ended; then all are started again, as often as allowed.

    Args:
        words: after the program's name.
        count: number of processes.
        max_restarts: how often.

    Returns:
        The exit status of the first process that failed; 0 if none did.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    # A restarted group must not meet in the store of the one before (pytorch issue 135712).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "sortyard", *words)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0
