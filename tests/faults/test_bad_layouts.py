"""Layouts that cannot be are refused with one message before any process is started, and leave nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from sortyard.cli.main import main
from tests.faults.elastic import ROOT, write_inputs

LOOP = "pretrain.loop"
LAYOUTS = {
    "tp": (["parallel.tp=3"], "tp_size is 3, which does not divide num_attention_heads 2"),
    "pp": (["parallel.pp=3"], "pp 3 with schedule 1f1b has 3 stages, but the model only 2 layers"),
    "stages": (["parallel.pp=2", "parallel.schedule=zbv_zero_bubble"], "has 4 stages, but the model only 2 layers"),
    "ep": (["parallel.ep=5"], "parallel.ep is 5, which does not divide model.num_experts 4"),
    "uneven ep": (
        ["parallel.ep=4", "model.num_experts=6", "model.num_expert_groups=2"],
        "parallel.ep is 4, which does not divide model.num_experts 6",
    ),
    "no experts": (
        ["parallel.ep=2", "model.num_experts=1", "model.num_expert_groups=1", "model.num_experts_per_tok=1"],
        "the model has no experts",
    ),
    "rows": (["parallel.dp_shard=9"], "9 data-parallel processes cannot share a micro-batch of 8 row"),
    "rows of replicas": (["parallel.dp_replicate=3", "parallel.ep=3"], "9 data-parallel processes cannot share"),
    "rounds": (
        [
            "parallel.pp=2",
            "parallel.schedule=interleaved_1f1b",
            "model.num_hidden_layers=4",
            f"{LOOP}.accumulation_steps=5",
        ],
        "takes micro-batches in 2 rounds, which loop.accumulation_steps 5 does not divide into",
    ),
    "selective": (
        [
            "parallel.pp=2",
            "parallel.schedule=zbv_zero_bubble",
            "model.num_hidden_layers=4",
            f"{LOOP}.activation_checkpointing=selective",
        ],
        "selective activation checkpointing does not allow",
    ),
    "sequence": (["parallel.sequence_parallel=true", "parallel.dp_shard=2"], "sequence_parallel is true but tp is 1"),
    "shuffled": (["parallel.dp_shard=2", "model.context=shuffled"], "train this control with tp or pp only"),
}  # fmt: skip


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return tmp_path


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("processes were started")

    monkeypatch.setattr("sortyard.parallel.launch.start_processes", refuse)
    monkeypatch.setattr("sortyard.parallel.mesh.join_processes", refuse)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.usefixtures("nothing_starts")
def test_what_does_not_fit_is_said_before_anything_starts(
    yard: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words, message = LAYOUTS[name]
    assert main(["pretrain", "tiny.yaml", *words, "-q"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("error: ") == 1
    assert not (yard / "runs").exists()


@pytest.mark.usefixtures("yard", "nothing_starts")
def test_a_schedule_that_an_older_torch_cannot_run_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1+cu130"))
    words, schedule = ["parallel.pp=2", "model.num_hidden_layers=4"], "parallel.schedule=zbv_zero_bubble"
    assert main(["pretrain", "tiny.yaml", *words, schedule, "-q"]) == 2
    assert "needs torch 2.13 or newer, and this is torch 2.12.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("started", "words", "message"),
    [
        (3, ["parallel.dp_shard=2"], "dp_shard 2 does not come to 3 processes; start 2"),
        (3, ["parallel.tp=2"], "tp 2 x dp_shard 0 does not come to 3 processes; start 2"),
        (1, ["parallel.dp_shard=2"], "dp_shard 2 does not come to 1 processes; start 2"),
        (9, [], "9 data-parallel processes cannot share a micro-batch of 8 row"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_torchrun_with_another_number_of_processes(
    yard: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    started: int,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(started))
    assert main(["pretrain", "tiny.yaml", *words, "-q"]) == 2
    assert message in capsys.readouterr().err
    assert not (yard / "runs").exists()


@pytest.mark.usefixtures("yard", "nothing_starts")
def test_torchrun_that_may_restart_needs_a_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain", "tiny.yaml", "-q"]) == 2
    assert "name one by --out" in capsys.readouterr().err


@pytest.mark.usefixtures("yard")
def test_a_folder_that_was_refused_is_refused_again_when_torchrun_restarts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts again whatever a process ended of."""
    assert main(["pretrain", "tiny.yaml", f"{LOOP}.steps=1", "--out", "run", "-q"]) == 0
    before = Path("run/resolved.yaml").read_text(), Path("run/events.jsonl").read_text()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["pretrain", "tiny.yaml", f"{LOOP}.steps=2", "--out", "run", "-q"]) == 2
    assert "run exists and is not empty" in capsys.readouterr().err
    assert before == (Path("run/resolved.yaml").read_text(), Path("run/events.jsonl").read_text())


@pytest.mark.usefixtures("yard")
def test_torchrun_on_several_machines_that_may_restart_needs_a_fresh_store(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    several = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "1"}
    for name, value in (several | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain", "tiny.yaml", "--out", "run", "-q"]) == 2
    assert "needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("found", [1, 3])
@pytest.mark.usefixtures("yard", "nothing_starts")
def test_fewer_gpus_than_processes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    assert main(["pretrain", "tiny.yaml", "parallel.dp_shard=4", f"{LOOP}.device=auto", "-q"]) == 2
    assert f"4 processes need a GPU each, and this machine has {found}" in capsys.readouterr().err


@pytest.mark.usefixtures("yard")
def test_a_resumed_run_keeps_the_layout_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "tiny.yaml", "--out", "run", f"{LOOP}.steps=1", "-q"]) == 0
    before = Path("run/resolved.yaml").read_bytes()
    assert main(["resume", "run", "parallel.dp_shard=9", "-q"]) == 2
    assert "9 data-parallel processes cannot share" in capsys.readouterr().err
    assert Path("run/resolved.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["finetune", "tiny.yaml", "--from", "somewhere"],
        ["adapt", "tiny.yaml", "--from", "somewhere"],
        ["eval", "somewhere"],
        ["predict", "--model", "somewhere", "text"],
        ["export", "somewhere"],
        ["demo"],
        ["bench", "attention"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.usefixtures("yard")
def test_verbs_of_one_process_refuse_several(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 2
    assert f"sortyard {words[0]} runs in one process; start it without torchrun" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.dist
def test_torchrun_says_it_once(yard: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    words += ["-m", "sortyard", "pretrain", "tiny.yaml", "parallel.dp_shard=2", "-q"]
    found = subprocess.run(words, capture_output=True, text=True, timeout=300, env={"PYTHONPATH": str(ROOT / "src")})
    assert found.returncode == 1  # torchrun's own
    assert found.stderr.count("does not come to 3 processes") == 1
    assert not (yard / "runs").exists()
