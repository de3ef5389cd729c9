"""Export kinds of models to ONNX and compare; run by test_program in a process of its own, without shape checks.

The folder given is empty.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from sortyard import SortyardConfig, SortyardForMaskedLM
from sortyard.interop import export_onnx
from sortyard.interop.exporting import largest_difference
from sortyard.interop.onnx.program import load_onnx
from tests.interop.dense_families import random_model

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "max_position_embeddings": 150,
    "bucket_size": 4,
    "near_buckets": 2,
    "beam": 2,
    "query_chunk": 8,
    "local_window": 2,
    "dense_up_to": 16,
}
KINDS: dict[str, dict[str, Any]] = {
    "bert-shaped": {
        "norm_position": "post", "use_bias": True, "gated_ffn": False, "position_embedding_type": "learned",
        "type_vocab_size": 2, "context": "ema", "shared_expert": True,
    },
    "mixed-layers": {"attention_layers": ["sliding", "bucket"], "expert_layers": [False, True], "hidden_act": "silu"},
    "dense-rounds": {"attention": "dense", "selection": "rounds", "causal": True, "context": "running_mean"},
}  # fmt: skip


def compare(model: Any, path: Path) -> None:
    export_onnx(model, path)
    for seed in range(3):
        differences = largest_difference(load_onnx(path), model, seed=seed)
        assert max(differences.values()) < 1e-5, differences


if __name__ == "__main__":
    path = Path(sys.argv[1]) / "model.onnx"
    for kind, changes in KINDS.items():
        torch.manual_seed(0)
        model = SortyardForMaskedLM(SortyardConfig(**SIZES | changes)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        print(kind)
        compare(model, path)
    for family in ("bert", "modernbert"):
        print(family)
        compare(random_model(family, "masked_lm").eval(), path)
