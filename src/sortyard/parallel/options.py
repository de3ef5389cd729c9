"""How a run is spread over processes; imports no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sortyard.errors import InputError
from sortyard.options import Options

Schedule = Literal["gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble"]
ActivationCheckpointing = Literal["none", "full", "selective"]
ONE_STAGE = ("gpipe", "1f1b")  # each process has one stage; the others give each two


class ParallelOptions(Options):
    """Layout of the processes; it changes who computes what, never what is computed.

    There are pp x dp_replicate x dp_shard x ep x tp processes. Batch sizes of a recipe are those of the whole run, so
    data-parallel processes share each micro-batch's rows.
    """

    dp_replicate: int = Field(1, ge=1, le=65_536, description="data parallel: groups that hold the whole model each")
    dp_shard: int = Field(
        0, ge=0, le=65_536, description="data parallel: processes that share one copy (FSDP2); 0 = all that are left"
    )
    ep: int = Field(1, ge=1, le=1024, description="data parallel: processes that hold different experts of a layer")
    tp: int = Field(1, ge=1, le=1024, description="tensor parallel: processes that share every layer's width")
    pp: int = Field(1, ge=1, le=1024, description="pipeline parallel: processes that hold layer after layer")
    schedule: Schedule = Field("1f1b", description="order in which pipeline stages take micro-batches")
    sequence_parallel: bool = Field(
        False, description="under tensor parallelism, keep norms and residual lines cut along the tokens"
    )

    timeout_seconds: int = Field(
        600, ge=5, le=86_400, description="how long processes wait for one that does not answer before the run ends"
    )
    max_restarts: int = Field(
        0, ge=0, le=10_000, description="how often a run that sortyard starts itself goes on after a process was lost"
    )

    @model_validator(mode="after")
    def _has_tensor_parallelism(self) -> Self:
        if self.sequence_parallel and self.tp == 1:
            raise ValueError("sequence_parallel is true but tp is 1: it cuts what tensor parallelism repeats")
        return self

    @property
    def num_stages(self) -> int:
        """Pipeline stages; an interleaved process has two."""
        return self.pp if self.pp == 1 or self.schedule in ONE_STAGE else 2 * self.pp

    @property
    def num_shares(self) -> int:
        """Data-parallel processes, which see different rows of a micro-batch, where dp_shard 0 counts as 1."""
        return self.dp_replicate * max(1, self.dp_shard) * self.ep

    def num_processes(self) -> int:
        """Processes of the layout, where dp_shard 0 counts as 1."""
        return self.pp * self.num_shares * self.tp


ONE_PROCESS = ParallelOptions()


def check_combination(
    options: ParallelOptions, *, context: str, router: str, checkpointing: ActivationCheckpointing
) -> None:
    """Refuse a layout with what it cannot share out.

    Args:
        options: the layout.
        context: of the model.
        router: of the model.
        checkpointing: what layers compute again.

    Raises:
        InputError: naming the option that does not fit.
    """
    if options.pp > 1 and "zero_bubble" in options.schedule and checkpointing == "selective":
        raise InputError(
            f"parallel: schedule {options.schedule} goes backward in two passes, which selective activation "
            "checkpointing does not allow; set loop.activation_checkpointing to full or none, or change the schedule"
        )
    if options.num_shares > 1 and context == "shuffled":
        raise InputError(
            "model.context shuffled reads another sequence of the micro-batch, whose rows data-parallel processes "
            "share: train this control with tp or pp only"
        )
    if options.pp > 1 and router == "token_hash":
        raise InputError("model.router token_hash reads token ids in every layer, which a pipeline does not pass on")


def stages_of(options: ParallelOptions, *, rank: int) -> list[int]:
    """The stages that a process of the pipeline holds: one, every pp-th, or for zbv one from each end."""
    if options.num_stages == options.pp:
        return [rank]
    if options.schedule == "zbv_zero_bubble":
        return [rank, options.num_stages - 1 - rank]
    return [rank, rank + options.pp]


def layer_span(num_layers: int, num_stages: int, index: int) -> tuple[int, int]:
    """The layers of a stage; where they do not divide, early stages have one more, as the last one has the head."""
    each, more = divmod(num_layers, num_stages)
    first = index * each + min(index, more)
    return first, first + each + (index < more)


def bubble_share(schedule: Schedule, *, pp: int, micro_batches: int, recomputes: bool = False) -> float:
    """Share of a step's time in which a pipeline process waits for others.

    With w the time that a process waits, in forward passes of all its layers, and 3 (4 with checkpointing) that of a
    whole micro-batch:

        gpipe, 1f1b              w = 3 (p - 1)                       share (p - 1) / (m + p - 1)
        interleaved_1f1b         w = 3 (p - 1) / 2                   share (p - 1) / (2 m + p - 1)
        zero bubble, both forms  w = (p - 1) / 2                     share (p - 1) / (6 m + p - 1)

    With checkpointing the last w is p - 1.

    Args:
        schedule: the schedule.
        pp: pipeline processes.
        micro_batches: of a step.
        recomputes: whether activations are recomputed.
    """
    passes = 4.0 if recomputes else 3.0
    if schedule in ONE_STAGE:
        waits = passes * (pp - 1)
    elif schedule == "interleaved_1f1b":
        waits = passes * (pp - 1) / 2
    else:
        waits = (pp - 1) * (passes - 2) / 2
    return waits / (passes * micro_batches + waits)
