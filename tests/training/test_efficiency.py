import pytest
import torch

from sortyard.training.efficiency import Efficiency, TokenFlops, peak_flops
from tests.training.tiny import new_run, train_tiny


def test_a_line_compares_both_arithmetics_with_the_peak_of_all_processes():
    efficiency = Efficiency(TokenFlops(executed=10.0, dense=15.0), peak=1000.0, num_processes=2)
    line = efficiency.of({"tokens_per_second": 100.0})
    assert line["tokens_per_second_per_process"] == 50
    assert line["flops_per_second"] == 1000
    assert (line["mfu"], line["mfu_dense"]) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("efficiency", "speed"),
    [(Efficiency(), 1.0), (Efficiency(TokenFlops(1, 1)), 1.0), (Efficiency(TokenFlops(1, 1), 1.0), None)],
    ids=["no count of the model", "unknown device", "no step yet"],
)
def test_what_is_not_known_is_null(efficiency, speed):
    assert efficiency.of({"tokens_per_second": speed})["mfu"] is None


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4e12),
        ("NVIDIA H100 PCIe", torch.float16, 756e12),
        ("NVIDIA A100-SXM4-40GB", torch.float32, 19.5e12),
        ("NVIDIA A10G", torch.bfloat16, 70e12),
        ("NVIDIA L40S", torch.bfloat16, 362e12),
        ("NVIDIA L40", torch.bfloat16, 181e12),
        ("NVIDIA GH200 480GB", torch.bfloat16, 989.4e12),
        ("NVIDIA RTX A1000", torch.bfloat16, None),
        ("NVIDIA T400 4GB", torch.bfloat16, None),
        ("Unheard of", torch.bfloat16, None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(monkeypatch, name, dtype, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), dtype=dtype) == expected


def test_the_peak_of_a_cpu_is_measured_once():
    first = peak_flops(torch.device("cpu"), dtype=torch.float32)
    assert first == peak_flops(torch.device("cpu"), dtype=torch.float32)
    assert 1e8 < first < 1e14


def test_every_line_has_the_same_fields(tmp_path):
    run = new_run(tmp_path / "run")
    train_tiny(run)
    lines = run.read_metrics("train")
    assert len({tuple(line) for line in lines}) == 1
    assert {"mfu", "mfu_dense", "bubble_share", "bubble_share_ideal", "send_bytes", "memory_bytes"} <= set(lines[0])
