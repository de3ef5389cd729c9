"""One tiny pretraining and one tiny fine-tuning through the command line, made once and read by many tests."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from sortyard.cli.main import main

WORDS = "the cat dog sat on a mat and then ran away from big small red house tree bird song night day".split()  # noqa: SIM905

RECIPE = """
extends: small
tokenizer: {vocab_size: 400}
model:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 64
  max_position_embeddings: 64
  bucket_size: 8
  query_chunk: 16
  near_buckets: 1
  local_window: 4
  dense_up_to: 16
  num_experts: 4
  num_expert_groups: 2
  num_groups_per_tok: 1
  moe_intermediate_size: 32
pretrain:
  data: {path: text.txt, hub_config: null, sequence_length: 64, validation_fraction: 0.1}
  loop: {steps: 4, micro_batch_size: 4, accumulation_steps: 2, log_every: 1, eval_every: 2, checkpoint_every: 2}
finetune:
  task: {name: custom, data: task.jsonl, max_length: 32}
  loop: {steps: 4, micro_batch_size: 8, log_every: 1, eval_every: 2, checkpoint_every: 2}
"""


def write_inputs(folder: Path) -> None:
    """Writes a recipe, a text and a task."""
    generator = random.Random(0)

    def sentence(length: int) -> str:
        return " ".join(generator.choice(WORDS) for _ in range(length))

    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "text.txt").write_text("\n\n\n".join(sentence(generator.randint(20, 90)) for _ in range(120)))
    rows = [{"text": f"{sentence(9)} {('sings', 'cries')[i % 2]}", "label": ("good", "bad")[i % 2]} for i in range(80)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs, the run `runs/tiny-0001` and the run `runs/tiny-custom-0001` on top of it."""
    folder = tmp_path_factory.mktemp("yard")
    write_inputs(folder)
    with chdir(folder):
        assert main(["pretrain", "tiny.yaml", "-q"]) == 0
        assert main(["finetune", "tiny.yaml", "--from", "runs/tiny-0001", "-q"]) == 0
    return folder


@pytest.fixture
def sortyard(
    yard: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, dict[str, Any], str]]]:
    """Runs a command line in the yard: exit status, the last line of stdout as JSON, stderr."""

    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        status = main([*words, "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out.splitlines()[-1]), captured.err

    before = os.getcwd()
    os.chdir(yard)
    yield run
    os.chdir(before)
