"""What GPUs could do at best in matrix products, by their makers' data sheets; imports no torch."""

import re

Peaks = tuple[float, float, float]  # dense TFLOP/s in 16 bits, in TF32 and in float32

PEAKS: dict[str, Peaks] = {  # by words of a GPU's name, of which the first count that fit
    "H100 PCIe": (756, 378, 51.2),
    "H100 NVL": (835, 417.5, 60),
    "H100": (989.4, 494.7, 66.9),
    "H200": (989.4, 494.7, 66.9),
    "B200": (2250, 1125, 75),
    "A100": (312, 156, 19.5),
    "A10G": (70, 35, 31.2),
    "A10": (125, 62.5, 31.2),
    "GH200": (989.4, 494.7, 66.9),
    "L40": (181, 90.5, 90.5),
    "L40S": (362, 183, 91.6),
    "L4": (121, 60, 30.3),
    "V100": (125, 15.7, 15.7),
    "T4": (65, 8.1, 8.1),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "MI300X": (1307.4, 653.7, 163.4),
}


def peaks_of(name: str) -> Peaks | None:
    """The peaks of a GPU by the name that its driver gives it; None for one that is not in the table."""
    return next((peaks for words, peaks in PEAKS.items() if re.search(rf"\b{words}\b", name)), None)
