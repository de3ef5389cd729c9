"""One of two processes that share every layer of a model; test_tensor_parallel starts both.

Takes a folder and the process's number. Leaves a report there: how far each model in two slices is from the whole one.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers.distributed import DistributedConfig

from sortyard import SortyardConfig
from sortyard.errors import InputError
from sortyard.model.factory import HEADS

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "moe_intermediate_size": 24, "num_experts": 4, "num_expert_groups": 2, "max_position_embeddings": 96,
    "dense_up_to": 24, "bucket_size": 4, "near_buckets": 2, "beam": 2, "query_chunk": 8, "local_window": 2,
    "num_labels": 3, "initializer_range": 0.2,
}  # fmt: skip
BERT: dict[str, Any] = {
    "norm_position": "post", "use_bias": True, "gated_ffn": False, "position_embedding_type": "learned",
    "type_vocab_size": 2,
}  # fmt: skip
DENSE: dict[str, Any] = {"attention": "dense", "num_experts": 1}
CAUSAL: dict[str, Any] = {"context": "running_mean", "causal": True}


class Case(NamedTuple):
    """A model, and the length of its longest text."""

    head: str
    length: int
    fields: dict[str, Any]


CASES = {
    "dense-uneven-vocabulary": Case("masked_lm", 40, DENSE | {"vocab_size": 97}),
    "dense-like-bert": Case("masked_lm", 40, DENSE | BERT),
    "dense-gated-with-bias": Case("token_classification", 40, DENSE | {"use_bias": True}),
    "tree-below-the-crossover": Case("masked_lm", 20, {}),
    "tree-above-it": Case("masked_lm", 90, {}),
    "rounds": Case("masked_lm", 90, {"selection": "rounds", "embedding_size": 16}),
    "experts-with-bias": Case("sequence_classification", 90, BERT),
    "windows-and-shared-expert": Case(
        "question_answering",
        90,
        {"attention_layers": ["sliding", "bucket"], "sliding_window": 4, "expert_layers": [False, True]}
        | {"shared_expert": True, "use_bias": True},
    ),
    "causal-tree": Case("causal_lm", 90, CAUSAL),
    "causal-rounds": Case("causal_lm", 90, CAUSAL | {"selection": "rounds"}),
}


def save(case: Case, folder: Path) -> None:
    """Save a model whose biases are no zeros, which would hide that they are counted twice."""
    torch.manual_seed(0)
    model = HEADS[case.head](SortyardConfig(**SMALL | case.fields)).double()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)


def batch_of(case: Case) -> dict[str, Tensor]:
    """Three texts, one of them half as long and padded."""
    ids = torch.randint(1, 96, (3, case.length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, case.length // 2 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def labels_of(case: Case, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    classes = torch.tensor([0, 2, 1])
    if case.head == "sequence_classification":
        return {"labels": classes}
    if case.head == "question_answering":
        return {"start_positions": classes, "end_positions": classes + 3}
    labels = batch["input_ids"] % 3 if case.head == "token_classification" else batch["input_ids"]
    return {"labels": labels.masked_fill(batch["attention_mask"] == 0, -100)}


def logits_of(model: nn.Module, case: Case) -> Tensor:
    batch = batch_of(case)
    with torch.no_grad():
        output = model.eval()(**batch)
    logits = output.start_logits if case.head == "question_answering" else output.logits
    return logits if case.head == "sequence_classification" else logits[batch["attention_mask"].bool()]


def gradients_of(model: nn.Module, case: Case) -> dict[str, Tensor]:
    """Whole gradients in training mode, where the balance loss of the experts counts, too."""
    batch = batch_of(case)
    model.train()(**batch, **labels_of(case, batch)).loss.backward()
    return {name: whole(parameter.grad) for name, parameter in model.named_parameters()}


def whole(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.full_tensor() if isinstance(value, DTensor) else value


def load(folder: Path, case: Case, dtype: torch.dtype, *, is_cut: bool) -> nn.Module:
    shared = {"distributed_config": DistributedConfig(tp_size=2)} if is_cut else {}
    model: nn.Module = HEADS[case.head].from_pretrained(folder, dtype=dtype, **shared)
    return model


def share_of_heads(weights: Tensor, rank: int) -> Tensor:
    return weights.chunk(2, dim=1)[rank]


def measure(folder: Path, case: Case, rank: int) -> dict[str, Any]:
    """Differences between a model in two slices and the whole one."""
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float64):
        single, cut = (load(folder, case, dtype, is_cut=is_cut) for is_cut in (False, True))
        wanted = logits_of(single, case)
        found[str(dtype)] = (wanted - logits_of(cut, case)).abs().max().item()
        found["largest"] = wanted.abs().max().item()
    names = {name for name, parameter in cut.named_parameters() if isinstance(parameter, DTensor)}
    found["local_shares"] = {
        name: parameter.to_local().numel() / parameter.numel()
        for name, parameter in cut.named_parameters()
        if name in names
    }
    found["sparsity"] = single(**batch_of(case), output_statistics=True).sparsity or 0.0
    attentions = [model(**batch_of(case), output_attentions=True).attentions for model in (single, cut)]
    found["attentions"] = max(
        (share_of_heads(one, rank) - other).abs().max().item() for one, other in zip(*attentions, strict=True)
    )
    wanted_gradients, gradients = gradients_of(single, case), gradients_of(cut, case)
    largest = max(gradient.abs().max() for gradient in wanted_gradients.values())
    found["gradients"] = {
        name: ((wanted - gradients[name]).abs().max() / largest).item() for name, wanted in wanted_gradients.items()
    }
    again = folder.with_name(f"{folder.name}-saved-from-slices")
    cut.save_pretrained(again)
    dist.barrier()
    saved = load(again, case, torch.float64, is_cut=False).state_dict()
    found["saved_otherwise"] = [name for name, value in single.state_dict().items() if not value.equal(saved[name])]
    return found


def losses(folder: Path, case: Case, *, is_cut: bool) -> list[float]:
    """Losses of some clipped steps; the norm of sliced gradients and that of whole ones are taken apart."""
    model, batch, found = load(folder, case, torch.float64, is_cut=is_cut).train(), batch_of(case), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch, **labels_of(case, batch)).loss
        loss.backward()
        kinds = [[p for p in model.parameters() if isinstance(p, DTensor) == is_sliced] for is_sliced in (True, False)]
        norms = [whole(get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
        for kind in kinds:
            clip_grads_with_norm_(kind, 0.5, torch.stack(norms).norm())
        optimizer.step()
        found.append(loss.item())
    return found


def refusal(folder: Path) -> str:
    """What a user is told whose model has nothing to give to the second process."""
    try:
        HEADS["masked_lm"].from_pretrained(
            folder, num_attention_heads=1, distributed_config=DistributedConfig(tp_size=2)
        )
    except InputError as error:
        return str(error)
    return ""


def main(folder: Path, rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    found = {}
    for name, case in CASES.items():
        if rank == 0:
            save(case, folder / name)
        dist.barrier()
        found[name] = measure(folder / name, case, rank)
    found["losses"] = [
        losses(folder / "tree-above-it", CASES["tree-above-it"], is_cut=is_cut) for is_cut in (True, False)
    ]
    found["refusal"] = refusal(folder / "dense-uneven-vocabulary")
    (folder / f"report-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
