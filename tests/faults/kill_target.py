"""The process that killing.py kills: a short training of a real model with experts, buckets and dropout."""

from pathlib import Path

from sortyard.model.factory import build_model
from sortyard.model.options import ModelOptions
from sortyard.objectives.masked_lm import MaskedLMObjective
from sortyard.runs.folder import RunFolder
from sortyard.training.loop import train
from sortyard.training.options import LoopOptions, OptimizerOptions, ScheduleOptions
from tests.training.tiny import VOCAB, TinySource

STEPS = 30

MODEL = ModelOptions(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    moe_intermediate_size=64,
    max_position_embeddings=32,
    bucket_size=4,
    query_chunk=4,
    dense_up_to=4,
    local_window=1,
    bias_update_rate=1e-3,
    hidden_dropout_prob=0.1,
)


def run_training(path: str, asynchronous: bool) -> None:
    """Start the run at a path, or go on with it."""
    here = Path(path)
    run = RunFolder.open(here) if (here / "resolved.yaml").exists() else _create(here)
    model = build_model(MODEL, head="masked_lm", vocab_size=VOCAB, tokenizer_ids={"pad_token_id": 0}, seed=0)
    train(
        model,
        source=TinySource(rows=4),
        objective=MaskedLMObjective(),
        loop=LoopOptions(
            steps=STEPS,
            micro_batch_size=4,
            accumulation_steps=2,
            log_every=1,
            checkpoint_every=2,
            async_checkpoints=asynchronous,
            num_threads=1,
            device="cpu",
            tensorboard=False,
        ),
        optimizer=OptimizerOptions(),
        schedule=ScheduleOptions(),
        run=run,
        seed=3,
    )


def _create(path: Path) -> RunFolder:
    return RunFolder.create(path, recipe="", resolved="steps: 30\n", environment={})
