"""A layout of many processes tried in one: what each would hold, and what would go wrong."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sortyard.errors import InputError, first_line
from sortyard.jobs.plan import pretraining_shapes
from sortyard.jobs.processes import check_fits
from sortyard.jobs.sections import pretrain_section
from sortyard.parallel.options import ParallelOptions
from sortyard.recipe import PretrainSection, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sortyard.parallel.apply import SplitModel

GIB, FLOAT_BYTES = 1 << 30, 4
LARGEST_BYTES = 2 * GIB


@dataclass(frozen=True)
class ProcessPart:
    """What one process holds: the first of those at one place of the pipeline, none of which holds more.

    Attributes:
        rank: Of the process.
        stages: Of the pipeline, in it.
        layers: Numbers of the encoder's layers.
        has_embeddings: Whether token ids come in here.
        has_head: Whether the loss comes out here.
        parameters: Elements of the parameters held.
        parameter_bytes: Of them, in float32.
        gradient_bytes: Of their gradients.
        optimizer_bytes: Of AdamW's two moments.
    """

    rank: int
    stages: tuple[int, ...]
    layers: tuple[int, ...]
    has_embeddings: bool
    has_head: bool
    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it; activations and what FSDP gathers for a while come on top."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes


@dataclass(frozen=True)
class LayoutReport:
    """What trying a layout came to.

    Attributes:
        layout: The sizes; dp_shard is resolved where they fit the processes.
        num_processes: Of the run.
        problems: What keeps it from running, in words; empty if nothing was found.
        parameters: Of the whole model.
        rows_per_process: Largest share of a micro-batch.
        ideal_bubble_share: Of the pipeline's schedule; None without a pipeline.
        parts: For each place of the pipeline.
        passes: What was run of a step, or why nothing was.
    """

    layout: Mapping[str, Any]
    num_processes: int
    problems: tuple[str, ...] = ()
    parameters: int = 0
    rows_per_process: int = 0
    ideal_bubble_share: float | None = None
    parts: tuple[ProcessPart, ...] = field(default=())
    passes: str = "not run"

    def record(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Writes the report for a human reader."""
        sizes = ", ".join(f"{name} {self.layout[name]}" for name in ("pp", "dp_replicate", "dp_shard", "ep", "tp"))
        lines = [f"{self.num_processes} processes: {sizes}, schedule {self.layout['schedule']}"]
        lines += [f"  problem     {problem}" for problem in self.problems]
        if self.parts:
            lines.append(f"  model       {self.parameters:,} parameters; {self.rows_per_process:,} rows a process")
        if self.ideal_bubble_share is not None:
            lines.append(f"  waiting     {self.ideal_bubble_share:.1%} of the time, were all stages equally slow")
        alike = self.num_processes // max(1, len(self.parts))
        lines += [f"  {f'{alike} like {part.rank}':<11} {_described(part)}" for part in self.parts]
        return "\n".join([*lines, f"  a step      {self.passes}"])


def try_layout(recipe: Recipe, options: ParallelOptions, num_processes: int) -> LayoutReport:
    """Builds what every place of a pipeline holds, and runs a step of it on made-up rows, all in this process.

    Weights are shapes only until a step is run; that one needs the memory of one process of the layout. Processes that
    differ in nothing but their place within a tensor-, data- or expert-parallel group hold as much or less.

    Args:
        recipe: With a pretrain section.
        options: The layout, instead of the recipe's own.
        num_processes: To be started; no cluster is needed.

    Returns:
        The report, with the problems of a layout that does not fit.

    Raises:
        InputError: The recipe has no pretrain section, or nothing can be tried in this process.
    """
    from sortyard.data.order import share_of
    from sortyard.parallel.mesh import resolve
    from sortyard.training.efficiency import ideal_bubble_share

    section = pretrain_section(recipe)
    report = LayoutReport(options.model_dump(), num_processes)
    model: Any = pretraining_shapes(recipe)
    loop = section.loop
    try:
        options = resolve(options, num_processes=num_processes)
        check_fits(model, options, loop)
    except InputError as error:
        return replace(report, problems=(str(error),))
    first, end = share_of(loop.micro_batch_size, (0, options.num_shares))
    report = replace(
        report,
        layout=options.model_dump(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        rows_per_process=end - first,
        ideal_bubble_share=ideal_bubble_share(options, loop),
    )
    for place in range(options.pp):
        report = _with_place(report, recipe, options, rank=place * (num_processes // options.pp))
    return report


def _with_place(report: LayoutReport, recipe: Recipe, options: ParallelOptions, *, rank: int) -> LayoutReport:
    from sortyard.parallel.pretending import one_of_many

    section = pretrain_section(recipe)
    with one_of_many(rank, num_processes=report.num_processes):
        split = _build(pretraining_shapes(recipe), section, options)
        part = _part(split, rank=rank)
        report = replace(report, parts=(*report.parts, part))
        if part.parameter_bytes + part.gradient_bytes > LARGEST_BYTES:
            return replace(report, passes=f"not run: it would take more than {LARGEST_BYTES / GIB:g} GiB here")
        if report.problems:
            return report
        try:
            return replace(report, passes=_run_step(split, section))
        except Exception as error:  # a layout may break anything
            reason = first_line(error.__cause__ or error)
            return replace(report, problems=(f"process {rank}, in a step: {reason}",), passes="broke off")


def _build(model: Any, section: PretrainSection, options: ParallelOptions) -> "SplitModel":
    """A process's part of a model, as shapes."""
    import torch

    from sortyard.objectives.masked_lm import MaskedLMObjective
    from sortyard.parallel.activation_checkpointing import checkpoint_activations
    from sortyard.parallel.apply import parallelize
    from sortyard.parallel.mesh import Layout
    from sortyard.training.precision import Precision

    loop, cpu = section.loop, torch.device("cpu")
    layout = Layout.make(options, device=cpu)
    split = parallelize(
        model,
        layout=replace(layout, device=torch.device("meta")),
        count_targets=MaskedLMObjective().count_targets,
        autocast=Precision(loop.precision, device=cpu).autocast,
        set_layers=lambda part: checkpoint_activations(
            part, loop.activation_checkpointing, loop.activation_checkpointing_every
        ),
    )
    split.layout = layout
    return split


def _part(split: "SplitModel", *, rank: int) -> ProcessPart:
    from sortyard.parallel.apply import local

    stages: list[Any] = list(split.stages)
    held = {id(each.tensor): local(each.tensor).numel() for each in split.held(buffers=False)}
    size = sum(held.values())
    layers = [int(name) for stage in stages for name, _ in stage.model.base_model.encoder.layers.named_children()]
    return ProcessPart(
        rank=rank,
        stages=tuple(stage.index for stage in stages),
        layers=tuple(layers),
        has_embeddings=any(stage.is_first for stage in stages),
        has_head=any(stage.is_last for stage in stages),
        parameters=size,
        parameter_bytes=FLOAT_BYTES * size,
        gradient_bytes=FLOAT_BYTES * size,
        optimizer_bytes=2 * FLOAT_BYTES * size,
    )


def _run_step(split: "SplitModel", section: PretrainSection) -> str:
    """One row through every stage held here, forward and backward.

    Stages are called one by one: torch's schedules first agree on values, which no exchange brings here.
    """
    import torch

    from sortyard.parallel.stage import Shares

    length, config = section.data.sequence_length, split.config
    batch = _row(length, vocab_size=config.vocab_size)
    targets = int((batch["labels"] >= 0).sum())
    for stage in split.stages:
        _make_real(stage)
        stage.load([batch], Shares(targets, [targets], 1.0, [0]))  # type: ignore[operator]
        states = torch.randn(1, length, config.hidden_size, requires_grad=True)
        received = () if stage.is_first else (states, torch.zeros(1, requires_grad=True))
        out = stage(*received, micro=torch.tensor(0))
        torch.autograd.backward([part.sum() for part in (out if isinstance(out, tuple) else (out,))])
    split.add_up_gradients()
    stages = " through each stage, which sends nothing on" if split.layout.options.pp > 1 else ""
    return f"1 row of {length:,} tokens, forward and backward{stages}; exchanges within a layer were made up"


def _make_real(stage: "nn.Module") -> None:
    """Give a stage of shapes random numbers; what shared a tensor shares one again."""
    import torch

    from sortyard.parallel.apply import local

    slots: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in stage.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            slots.setdefault(id(parameter), []).append((module, leaf))
    stage.to_empty(device="cpu")
    with torch.no_grad():
        for (first, leaf), *others in slots.values():
            local(first.get_parameter(leaf)).normal_(std=0.02)
            for module, other in others:
                setattr(module, other, first.get_parameter(leaf))
        for buffer in stage.buffers():
            buffer.zero_()


def _row(length: int, *, vocab_size: int) -> "dict[str, Tensor]":
    import torch

    ids = torch.randint(vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(torch.arange(length) % 5 > 0, -100),
        "cu_seqlens": torch.tensor([0, length], dtype=torch.int32),
    }


def _described(part: ProcessPart) -> str:
    layers = ", ".join(map(str, part.layers))
    ends = "embeddings, " * part.has_embeddings + f"layers {layers}" + ", head" * part.has_head
    return f"{ends}; {part.parameters:,} parameters, {part.total_bytes / GIB:.2f} GiB with gradients and AdamW"
