"""`bench fidelity`: how close a pretrained encoder stays to itself when its attention leaves pairs out."""

import statistics
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sortyard.errors import InputError
from sortyard.studies.bench.fidelity_encoder import Encoder, load_encoder
from sortyard.studies.bench.fidelity_page import fidelity_page, fidelity_text, summarise
from sortyard.studies.bench.fidelity_selections import (
    FAMILIES,
    MIDDLE_POINTS,
    TREE,
    Selection,
    make_selection,
    points_of,
)
from sortyard.studies.bench.fidelity_text import read_documents, take_passages
from sortyard.studies.bench.results import BenchResult, new_result
from sortyard.studies.bench.study import Say, Study, run_study

Json = dict[str, Any]
Passages = Mapping[int, list[Tensor]]
WHAT = (
    "error of a layer's output against dense attention (norm of the difference over the norm, mean over layers), "
    "cosine of the final token states after all layers are swapped, and dense attention's mass on exact keys, by keys "
    "a query (a summary counts as one key)"
)
STRETCHED_LENGTHS, LONGEST_DEFAULT = (512, 2048), 4096
_HEADS_LOOKED_AT = 6


@dataclass(frozen=True)
class FidelityPlan:
    """What `bench fidelity` measures.

    Attributes:
        model: A folder or hub name of a BERT or sortyard encoder.
        model_name: What results call it.
        text: A file, folder or hub name, or "stdlib".
        text_name: What results call it.
        lengths: Tokens of the passages; empty = 512 and 2,048, or for a model that cannot be stretched its own length.
        passages: Passages of each length.
        families: Selections, among FAMILIES; empty = all. The default tree is always among them.
        quick: Whether to measure two budgets instead of four.
        seed: Seed of directions, projections, random keys and the choice of passages.
        threads: Threads of torch.
    """

    model: str
    model_name: str
    text: str
    text_name: str
    lengths: tuple[int, ...]
    passages: int
    families: tuple[str, ...]
    quick: bool
    seed: int
    threads: int

    def command(self) -> str:
        """Return the command line that asks for this plan."""
        lengths = f" --lengths {','.join(map(str, self.lengths))}" if self.lengths else ""
        families = f" --selections {','.join(self.families)}" if self.families else ""
        return (
            f"sortyard bench fidelity --model {self.model_name} --text {self.text_name}{lengths}{families} "
            f"--passages {self.passages} --seed {self.seed} --threads {self.threads}" + " --quick" * self.quick
        )

    def cells(self, lengths: tuple[int, ...]) -> list[tuple[int, str, str]]:
        """Return length, family and point of every cell, the default tree first, as the others take its keys."""
        wanted = [family for family in FAMILIES if family == TREE or family in (self.families or FAMILIES)]
        return [
            (length, family, point)
            for length, family in product(lengths, wanted)
            for point in points_of(family)
            if not self.quick or point in MIDDLE_POINTS
        ]


@dataclass
class _Watched:
    """A selection as an encoder's attention, noting each layer's error and, if asked, its pairs."""

    selection: Selection
    with_pairs: bool
    errors: list[float] = field(default_factory=list)
    keys: list[float] = field(default_factory=list)
    mass: list[float] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = self.selection.attend(q, k, v)
        dense = F.scaled_dot_product_attention(q, k, v)
        self.errors.append(float((out - dense).norm() / dense.norm()))
        if self.with_pairs:
            heads = _looked_at(len(self.errors) - 1, num_heads=q.shape[1])
            near, keys = self.selection.pairs(q[:, heads], k[:, heads])
            self.keys.append(keys)
            self.mass.append(_mass(q[0, heads], k[0, heads], near[0]))
        return out


def run_fidelity(plan: FidelityPlan, *, folder: Path, fresh: bool, say: Say) -> tuple[BenchResult, str]:
    """Measure what is missing, writing fidelity.json after every cell and fidelity.html at the end.

    Args:
        plan: What to measure.
        folder: An existing folder for the files.
        fresh: Whether to measure anew what an earlier run left.
        say: Takes a line of progress.

    Returns:
        The result and its tables as text.

    Raises:
        InputError: the model or the text cannot be used, or the folder holds a result of other settings.
    """
    encoder = load_encoder(plan.model, name=plan.model_name)
    lengths = _lengths(plan, encoder)
    passages = _passages(plan, encoder, lengths)
    begun = new_result(
        "fidelity", what=WHAT, command=plan.command(), seed=plan.seed, threads=plan.threads, device="cpu",
        settings={
            "model": plan.model_name, "weights": encoder.weights, "text": plan.text_name, "passages": plan.passages,
            "stretched_from": encoder.native_length,
        },
    )  # fmt: skip
    cell_of = _CellOf(encoder, passages, seed=plan.seed)
    study = Study(
        begun=begun,
        items={"/".join(map(str, where)): where for where in plan.cells(lengths)},
        measure=cell_of,
        words=_words,
        summarise=summarise,
        write_page=fidelity_page,
        write_text=fidelity_text,
        is_current=lambda where, cell: bool(cell["tokens"] == _digest(passages[where[0]])),
        is_timed=False,
    )
    return run_study(study, folder=folder, fresh=fresh, say=say)


def measure_cell(
    encoder: Encoder, passages: list[Int[Tensor, "1 T"]], selection: Selection, *, dense: list[Float[Tensor, "T D"]]
) -> Json:
    """Swap every layer's attention for a selection and compare with dense attention.

    Args:
        encoder: The pretrained encoder.
        passages: Token ids.
        selection: Replaces dense attention. Its pairs are looked at in the first passage and some heads of a layer,
            others in the next, as that is slow.
        dense: The encoder's own token states of each passage.

    Returns:
        Means and each passage's values.
    """
    errors, cosines, keys, mass = [], [], [], []
    for number, (ids, states) in enumerate(zip(passages, dense, strict=True)):
        watched = _Watched(selection, with_pairs=number == 0)
        swapped = encoder.states(ids, watched)
        errors.append(watched.errors)
        cosines.append(float(F.cosine_similarity(swapped, states, dim=-1).mean()))
        keys += watched.keys
        mass += watched.mass
    return {
        "keys": statistics.fmean(keys),
        "mass": statistics.fmean(mass),
        "error": statistics.fmean(statistics.fmean(layers) for layers in errors),
        "cosine": statistics.fmean(cosines),
        "error_by_passage": [statistics.fmean(layers) for layers in errors],
        "error_by_layer": [statistics.fmean(layer) for layer in zip(*errors, strict=True)],
        "cosine_by_passage": cosines,
    }


class _CellOf:
    """Measures a length, family and point; keeps the encoder's own states of one length, as they are slow to make."""

    def __init__(self, encoder: Encoder, passages: Passages, *, seed: int):
        self._encoder, self._passages, self._seed = encoder, passages, seed
        self._dense: dict[int, list[Tensor]] = {}

    def __call__(self, where: tuple[int, str, str], cells: Mapping[str, Json], _: float) -> Json:
        length, family, point = where
        passages = self._passages[length]
        if length not in self._dense:
            self._dense = {length: [self._encoder.states(ids, F.scaled_dot_product_attention) for ids in passages]}
        keys = None if family == TREE else cells[f"{length}/{TREE}/{point}"]["keys"]
        selection = make_selection(family, point, length=length, keys=keys, seed=self._seed)
        measured = measure_cell(self._encoder, passages, selection, dense=self._dense[length])
        return {"length": length, "selection": family, "point": point, "tokens": _digest(passages), **measured}


def _words(cell: Json) -> str:
    return f"{cell['keys']:.0f} keys a query, error {cell['error']:.3f}, cosine {cell['cosine']:.4f}"


def _lengths(plan: FidelityPlan, encoder: Encoder) -> tuple[int, ...]:
    own = encoder.native_length
    lengths = plan.lengths or (STRETCHED_LENGTHS if encoder.can_stretch else (min(own, LONGEST_DEFAULT),))
    if plan.quick and not plan.lengths:
        lengths = lengths[:1]
    if max(lengths) > own and not encoder.can_stretch:
        raise InputError(f"--lengths {max(lengths)}: {plan.model_name} takes at most {own} tokens")
    return lengths


def _passages(plan: FidelityPlan, encoder: Encoder, lengths: tuple[int, ...]) -> Passages:
    return {
        length: take_passages(
            read_documents(plan.text), tokenizer=encoder.tokenizer, length=length, count=plan.passages,
            seed=plan.seed, source=plan.text_name,
        )
        for length in lengths
    }  # fmt: skip


def _looked_at(layer: int, *, num_heads: int) -> slice:
    step = max(1, num_heads // _HEADS_LOOKED_AT)
    return slice(layer % step, None, step)


def _mass(q: Float[Tensor, "H T K"], k: Float[Tensor, "H T K"], near: Bool[Tensor, "#H T T"]) -> float:
    """Dense attention's mass on the exact pairs, head by head."""
    kept = [
        float(((q_head @ k_head.T * q.shape[-1] ** -0.5).softmax(-1) * near_head).sum(-1).mean())
        for q_head, k_head, near_head in zip(q, k, near.expand(len(q), -1, -1), strict=True)
    ]
    return statistics.fmean(kept)


def _digest(passages: list[Tensor]) -> str:
    return f"{zlib.crc32(torch.cat(passages).numpy().tobytes()):08x}"
