"""Does a device multiply bf16 itself? Where it only imitates it, bf16 is slower than fp32."""

from pathlib import Path

_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names them; the last one on ARM


def has_bf16(device_type: str) -> bool:
    """Say whether a kind of device multiplies bf16 itself.

    Args:
        device_type: "cpu" or "cuda". Of processors Linux alone tells; elsewhere they are taken not to.
    """
    if device_type == "cuda":
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not _INSTRUCTIONS.isdisjoint(flags)
