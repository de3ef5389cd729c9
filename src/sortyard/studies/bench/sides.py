"""The sides of `bench attention`: this library at its budgets and backends, and dense attention in several forms."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sortyard.ops import BucketSpec, bucket_attention
from sortyard.ops.bucket_attention import expected_sparsity
from sortyard.ops.bucket_attention.backend import available_backends
from sortyard.studies.bench.cases import DTYPES, Case, Inputs, Work, make_call, make_inputs
from sortyard.studies.bench.memory import Probe
from sortyard.studies.bench.peers import REFORMER_SIDES, Peer
from sortyard.studies.bench.runner import Call

DENSE = "dense"
# The lengths at which to be dense are the layer's business: here every length is measured sparse.
_TREE = BucketSpec(dense_up_to=0)
TREES = {
    "tree-small": replace(_TREE, near_buckets=2, beam=4),
    "tree-default": _TREE,
    "tree-large": replace(_TREE, near_buckets=8, beam=16),
}
ROUNDS = BucketSpec(selection="rounds", bucket_size=32, num_hash_rounds=2, dense_up_to=0)
_WARM_LENGTH = 256


@dataclass(frozen=True)
class Side:
    """One competitor.

    Attributes:
        name: Its name in results.
        note: What it is, in words.
        make: Its work on a case's inputs.
        keys: How many keys and summaries a query reads at a length.
        unfit: Why a case cannot be measured with it; empty where it can.
        is_quadratic: Whether its time grows as the square of the length.
        materialises: Whether it holds the whole matrix of weights.
        needs_warmup: Whether its first call compiles.
        spec: The settings, where it is ours.
    """

    name: str
    note: str
    make: Callable[[Inputs, Case], Work]
    keys: Callable[[int], float]
    unfit: Callable[[Case], str] = lambda _: ""
    is_quadratic: bool = False
    materialises: bool = False
    needs_warmup: bool = False
    spec: BucketSpec | None = None

    @property
    def time_power(self) -> float:
        """How fast its time grows with the length; for all but the quadratic ones on the safe side."""
        return 2.0 if self.is_quadratic else 1.4

    @property
    def memory_power(self) -> float:
        """How fast its memory grows with the length."""
        return 2.0 if self.materialises else 1.1

    def least_bytes(self, case: Case) -> int:
        """What a call needs for certain: logits and weights, where they are held."""
        return 2 * case.heads * case.length**2 * DTYPES[case.dtype].itemsize if self.materialises else 0

    def call(self, case: Case) -> Call:
        """Its work in a case, on inputs made here."""
        return make_call(self.make(make_inputs(case), case), direction=case.direction)

    def facts(self, case: Case) -> dict[str, Any]:
        """What its record says besides time and memory."""
        return {"keys_per_query": round(self.keys(case.length), 1)}


def find_sides(device: str) -> dict[str, Side]:
    """Every side that a device can be asked about, dense first; a missing peer is among them and says so."""
    sides = [_dense(DENSE, "torch's scaled_dot_product_attention", _sdpa), _materialised()]
    for backend in available_backends(device):
        sides += [_own(f"{name}-{backend}", spec, backend) for name, spec in TREES.items()]
    sides.append(_own("rounds-cpu", ROUNDS, "cpu"))
    if device.startswith("cuda"):
        sides += [_flash(), _flex_side()]
    sides += [_peer(peer) for peer in REFORMER_SIDES]
    return {side.name: side for side in sides}


def attention_probe(*, side: str, **fields: object) -> Probe:
    """What the memory measurement's child runs: one side in one case, and the same at a small length."""
    case = Case(**fields)  # type: ignore[arg-type]
    chosen = find_sides(case.device)[side]
    return Probe(call=chosen.call(case), warm=chosen.call(case.at(_WARM_LENGTH)))


def _own(name: str, spec: BucketSpec, backend: str) -> Side:
    def make(inputs: Inputs, _: Case) -> Work:
        q, k, v = inputs.q, inputs.k, inputs.v
        return Work(lambda: bucket_attention(q, k, v, spec, backend=backend), (q, k, v), inputs.gradient)

    if spec.selection == "tree":
        budget = f"near_buckets {spec.near_buckets}, beam {spec.beam}"
    else:
        budget = f"bucket_size {spec.bucket_size}, {spec.num_hash_rounds} rounds"
    note = f"ours, selection {spec.selection}, {budget}, backend {backend}"
    return Side(name, note, make, lambda n: n * (1 - expected_sparsity(spec, n, False)), spec=spec)


def _dense(name: str, note: str, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Side:
    def make(inputs: Inputs, _: Case) -> Work:
        q, k, v = inputs.q, inputs.k, inputs.v
        return Work(lambda: attend(q, k, v), (q, k, v), inputs.gradient)

    return Side(name, note, make, float, is_quadratic=True)


def _materialised() -> Side:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v

    return replace(_dense("materialised", "softmax(q k^T) v with the matrix held in memory", attend), materialises=True)


def _flash() -> Side:
    def unfit(case: Case) -> str:
        return "" if DTYPES[case.dtype] != torch.float32 else "flash attention takes no fp32"

    return replace(_dense("flash", "torch's flash attention, no other kernel allowed", _flash_only), unfit=unfit)


def _flex_side() -> Side:
    return replace(_dense("flex", "torch's flex_attention, compiled, without a mask", _flex), needs_warmup=True)


def _peer(peer: Peer) -> Side:
    return Side(peer.name, peer.note, peer.make, peer.keys, unfit=peer.unfit)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _flash_only(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def _flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = _compiled_flex()(q, k, v)
    return out


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled
