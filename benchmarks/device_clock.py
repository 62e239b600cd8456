"""Time on a device, and the bandwidth that its data sheet promises; `python device_clock.py DEVICE`: its facts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

# Bytes a second of the memory, by the name that the driver gives the device; of several that match, the longest counts.
DATA_SHEET = {
    "A10": 600e9,
    "A100-PCIE-40GB": 1555e9,
    "A100-SXM4-40GB": 1555e9,
    "A100 80GB PCIe": 1935e9,
    "A100-SXM4-80GB": 2039e9,
    "B200": 8000e9,
    "GH200 480GB": 4000e9,
    "H100 80GB HBM3": 3350e9,
    "H100 NVL": 3900e9,
    "H100 PCIe": 2000e9,
    "H200": 4800e9,
    "L4": 300e9,
    "L40S": 864e9,
    "RTX 3090": 936e9,
    "RTX 4090": 1008e9,
    "RTX A6000": 768e9,
}
FLUSH_BYTES = 256 << 20  # more than any L2


def bandwidth(device_name: str) -> float | None:
    """None: the device is in no row; its bound is then left out, never guessed."""
    if "MIG" in device_name:  # a slice has a part of it
        return None
    found = [name for name in DATA_SHEET if f" {name} " in f" {device_name} "]
    return DATA_SHEET[max(found, key=len)] if found else None


def rounds_within(budget: float, seconds: float, most: int) -> int:
    """How often a call that takes `seconds` fits into a budget of seconds: 3 to `most` times."""
    return max(3, min(most, int(budget / max(seconds, 1e-9))))


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def call_seconds(run: Callable[[], object], device: str, rounds: int = 5) -> float:
    """Median wall-clock seconds of one call, waited for."""
    times = []
    for _ in range(rounds):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return median(times)


def kernel_seconds(run: Callable[[], object], device: str, rounds: int = 30) -> float:
    """Median seconds on the device with a cold L2; what it costs to launch hides behind the flush before it."""
    if device != "cuda":
        return call_seconds(run, device, rounds)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(rounds)]
    for before, after in events:
        flush.zero_()
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    return median(before.elapsed_time(after) for before, after in events) / 1e3


def facts(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": "CPU",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
    }
    if device != "cuda":
        return found
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cudnn": torch.backends.cudnn.version(),
        "data_sheet_bandwidth": bandwidth(properties.name),
    }


if __name__ == "__main__":
    print(json.dumps(facts(sys.argv[1])))
