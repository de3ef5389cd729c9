"""GPUs by their makers' public figures, and how processes share their links; imports no torch."""

from dataclasses import dataclass
from typing import Literal

from sortyard.errors import InputError
from sortyard.gpu_peaks import PEAKS, Peaks

GIGA = 1e9
GIB = float(1 << 30)


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: What --gpu calls it.
        half_flops: Peak of dense bf16 and fp16 matrix products a second, without sparsity.
        float_flops: The same in float32, without TF32, which torch leaves off.
        memory_bytes: Of the card.
        memory_speed: Bytes a second of that memory.
        node_speed: Bytes a second that it sends to others in its node, one direction.
        network_speed: Bytes a second that it sends to other nodes.
        source: Where the figures stand.
    """

    name: str
    half_flops: float
    float_flops: float
    memory_bytes: float
    memory_speed: float
    node_speed: float
    network_speed: float
    source: str


def _gpu(name: str, *, peaks: Peaks, gib: float, speeds: tuple[float, float, float], source: str) -> Gpu:
    memory, node, network = (speed * GIGA for speed in speeds)
    half, _, full = (value * 1e12 for value in peaks)
    return Gpu(name, half, full, gib * GIB, memory, node, network, source)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu(
            "h100", peaks=PEAKS["H100"], gib=80, speeds=(3350, 450, 50),
            source="NVIDIA H100 SXM data sheet; NVLink 900 GB/s both ways; DGX H100: 400 Gb/s a GPU",
        ),
        _gpu(
            "h200", peaks=PEAKS["H200"], gib=141e9 / GIB, speeds=(4800, 450, 50),
            source="NVIDIA H200 SXM data sheet, 141 GB; NVLink 900 GB/s both ways; DGX H200: 400 Gb/s a GPU",
        ),
        _gpu(
            "a100-80", peaks=PEAKS["A100"], gib=80, speeds=(2039, 300, 25),
            source="NVIDIA A100 SXM 80 GB data sheet; NVLink 600 GB/s both ways; DGX A100: 200 Gb/s a GPU",
        ),
        _gpu(
            "a100-40", peaks=PEAKS["A100"], gib=40, speeds=(1555, 300, 25),
            source="NVIDIA A100 SXM 40 GB data sheet; NVLink 600 GB/s both ways; DGX A100: 200 Gb/s a GPU",
        ),
        _gpu(
            "l40s", peaks=PEAKS["L40S"], gib=48, speeds=(864, 32, 12.5),
            source="NVIDIA L40S data sheet; no NVLink, PCIe 4.0 x16 64 GB/s both ways; 100 Gb/s a GPU assumed",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes.

    Attributes:
        gpu: What each is.
        gpus: How many there are.
        per_node: How many share a node.
        mfu: Share of the GPU's peak that executed arithmetic reaches.
        link_share: Share of a link's peak that messages reach.
    """

    gpu: Gpu
    gpus: int
    per_node: int
    mfu: float
    link_share: float

    def speed(self, *, size: int, stride: int, way: Literal["ring", "each"]) -> float:
        """Bytes a second that a GPU of a group sends.

        Where a group spans nodes, a ring crosses from node to node once, and may use the network links of all the
        group's members in a node for it. When every member sends to every other, each uses its own.

        Args:
            size: Processes of the group.
            stride: Distance of the ranks of neighbours in it.
            way: "ring" for gathering, scattering and reducing; "each" for all-to-all and sends.
        """
        if self.gpus <= self.per_node or self.per_node % (size * stride) == 0:
            return self.gpu.node_speed * self.link_share
        members = max(1, self.per_node // stride) if way == "ring" else 1
        return min(self.gpu.node_speed, members * self.gpu.network_speed) * self.link_share


def make_cluster(gpu: str, *, gpus: int, per_node: int, mfu: float, link_share: float) -> Cluster:
    """Checks the numbers of a cluster.

    Raises:
        InputError: The GPU is unknown, a number is not positive, or nodes would not be full.
    """
    if gpu not in GPUS:
        raise InputError(f"--gpu {gpu} is unknown; choose one of {', '.join(GPUS)}")
    if gpus < 1:
        raise InputError(f"--gpus is {gpus}; give the number of GPUs of the whole run, at least 1")
    if per_node < 1:
        raise InputError(f"--gpus-per-node is {per_node}; give the number of GPUs that share a node, at least 1")
    if gpus > per_node and gpus % per_node:
        raise InputError(
            f"--gpus {gpus} is no multiple of --gpus-per-node {per_node}; take {gpus - gpus % per_node} or "
            f"{gpus + per_node - gpus % per_node} GPUs, or say how many a node has"
        )
    if not 0 < mfu <= 1:
        raise InputError(f"--mfu is {mfu:g}; give the share of the peak that arithmetic reaches, above 0, at most 1")
    return Cluster(GPUS[gpu], gpus, min(per_node, gpus), mfu, link_share)
