"""Shared fixtures; shapes are checked at run time in ops and model."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Triton reads this when it is imported, by whichever test comes first: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The options are left out: pydantic checks them itself, and beartype cannot decorate methods that return Self.
CHECKED = [
    "sortyard.ops",
    *(
        f"sortyard.model.{name}"
        for name in ("block", "embeddings", "encoder", "feed_forward", "heads", "losses", "modeling", "prediction_head")
    ),
    *(f"sortyard.model.attention.{name}" for name in ("bucket", "dense", "layer")),
    *(f"sortyard.model.experts.{name}" for name in ("balance", "context", "layer", "router", "routing")),
]
install_import_hook(CHECKED, "beartype.beartype")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout, where there is one."""
    if not DATA.is_dir():
        pytest.skip(f"the real data sets are not at {DATA}")
    return DATA
