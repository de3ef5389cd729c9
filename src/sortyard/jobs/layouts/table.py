"""Estimates for a human reader."""

from collections.abc import Sequence

from sortyard.jobs.layouts.estimate import USABLE, Estimate
from sortyard.jobs.layouts.machines import GIB, GIGA, Cluster
from sortyard.jobs.layouts.traffic import KINDS
from sortyard.jobs.layouts.work import Work
from sortyard.parallel.options import ParallelOptions

SHORT_NAMES = {
    "interleaved_1f1b": "interleaved",
    "interleaved_zero_bubble": "zero bubble",
    "zbv_zero_bubble": "zero bubble V",
}


def memory_table(estimates: Sequence[Estimate]) -> str:
    """Memory of a GPU by part."""
    parts = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers")
    head = [*_LAYOUT_HEAD, *parts, "GiB", "fits"]
    rows = [
        [
            *_layout_cells(number, estimate.layout),
            *(f"{getattr(estimate.memory, part) / GIB:.2f}" for part in parts),
            f"{estimate.memory.total / GIB:.2f}",
            "yes" if estimate.fits else "no",
        ]
        for number, estimate in enumerate(estimates, 1)
    ]
    return _columns([head, *rows])


def time_table(estimates: Sequence[Estimate]) -> str:
    """Gigabytes that a GPU sends in a step and their seconds, the bubble, and how long the step takes."""
    kinds = [kind for kind in KINDS if any(estimate.sent[kind] for estimate in estimates)]
    head = [*_LAYOUT_HEAD, *kinds, "bubble", "compute s", "step s", "tokens/s"]
    rows = [
        [
            *_layout_cells(number, estimate.layout),
            *(f"{estimate.sent[kind] / GIGA:.2f}/{estimate.link_seconds[kind]:.2f}" for kind in kinds),
            f"{estimate.bubble:.1%}",
            f"{estimate.compute_seconds:.3f}",
            f"{estimate.step_seconds:.3f}",
            f"{estimate.tokens_per_second:,.0f}",
        ]
        for number, estimate in enumerate(estimates, 1)
    ]
    return _columns([head, *rows])


def assumptions(work: Work, cluster: Cluster) -> list[str]:
    """What the estimates take for granted."""
    gpu, node = cluster.gpu, cluster.per_node
    peak = (gpu.half_flops if work.half else gpu.float_flops) / 1e12
    return [
        f"{gpu.name}: {peak:g} TFLOP/s in {'16-bit' if work.half else 'float32'} products, "
        f"{gpu.memory_bytes / 2**30:.0f} GiB at {gpu.memory_speed / 1e9:g} GB/s, {gpu.node_speed / 1e9:g} GB/s to the "
        f"{node} GPUs of a node, {gpu.network_speed / 1e9:g} GB/s to others ({gpu.source})",
        f"executed arithmetic reaches {cluster.mfu:.0%} of the peak (--mfu; not measured), messages "
        f"{cluster.link_share:.0%} of the links; a layout fits if it needs at most {USABLE:.0%} of the memory",
        "weights, also where FSDP2 gathers them, gradients and AdamW's moments in float32; products and exchanged "
        f"tokens in {'16' if work.half else '32'} bits; residual lines in float32; attention by fused kernels",
        "FSDP2 gathers weights for forward and backward and scatters gradients in every micro-batch without a "
        "pipeline, once a step with one; replicas are reduced once a step; all of that hides behind arithmetic as far "
        "as it lasts, and nothing else does",
        "ranks run tp fastest, then ep, dp_shard, dp_replicate, pp; experts get equally many tokens; the vocabulary "
        "and its loss are cut by tp; tied embeddings lie on the first and the last stage",
    ]


_LAYOUT_HEAD = ("", "pp", "dp", "ep", "tp", "schedule")


def _layout_cells(number: int, layout: ParallelOptions) -> list[str]:
    tensor = f"{layout.tp}{'+sp' if layout.sequence_parallel else ''}"
    schedule = SHORT_NAMES.get(layout.schedule, layout.schedule) if layout.pp > 1 else "-"
    data = f"{layout.dp_replicate}x{layout.dp_shard}"
    return [str(number), str(layout.pp), data, str(layout.ep), tensor, schedule]


def _columns(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
