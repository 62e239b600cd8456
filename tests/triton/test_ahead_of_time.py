"""What the Triton launchers would launch, compiled for GPUs that are not here, and a look at the machine code."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.language", reason="triton is not installed")  # not "triton": this folder has that name
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

TARGETS = [GPUTarget("cuda", arch, 32) for arch in (80, 90, 100)] + [GPUTarget("hip", "gfx942", 64)]
SM_90 = TARGETS[1]
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


class Recorder:
    """Stands for a kernel in its module and keeps what it is launched with."""

    def __init__(
        self, kernel: JITFunction, launches: list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]]
    ) -> None:
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self._launches.append((self._kernel, args, options))


def _compiled(stem: str, arguments: tuple[Any, ...], target: GPUTarget) -> Iterator[tuple[str, CompiledKernel]]:
    """(name, code) of each launch of op `stem`, specialised on its arguments as Triton does when it launches."""
    module = import_module(f"advcam_fast.ops.triton.{stem.removesuffix('_backward')}")
    launches: list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                patch.setattr(module, name, Recorder(value, launches))
        getattr(module, stem)(*arguments)
    backend = make_backend(target)
    for kernel, args, options in launches:
        options = {**options, "debug": False}
        bound, specialization, rest = create_function_from_signature(kernel.signature, kernel.params, backend)(
            *args, **options
        )
        parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, rest)
        source = ASTSource(kernel, signature, constants, attributes)
        yield kernel.__name__, triton.compile(source, target=target, options=parsed.__dict__)


def _step(shape: tuple[int, ...], image: torch.dtype, gradient: torch.dtype, offset: int = 0) -> tuple[Any, ...]:
    def dense(dtype: torch.dtype) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.zeros(count + offset, dtype=dtype)[offset:].view(shape)

    return dense(image), dense(gradient), 0.08, 2, dense(gradient)


def _loss(dtype: torch.dtype, layout: torch.memory_format) -> tuple[Any, ...]:
    groups, classes, wide = 2, 20, F64 if dtype == F64 else F32
    logit_map = torch.zeros(2 * groups, classes, 24, 32, dtype=dtype).to(memory_format=layout)
    target = torch.zeros(groups, dtype=torch.int64)
    weight, positive, initial = (torch.zeros(groups, *rest, dtype=wide) for rest in ((classes,), (), (24, 32)))
    return logit_map, target, weight, positive, initial


def _cam(dtype: torch.dtype) -> tuple[Any, ...]:
    maps = [torch.zeros(2, *size, dtype=dtype) for size in ((12, 16), (24, 32), (47, 63), (376, 512))]
    return maps, torch.zeros(2, 375, 500, dtype=dtype), (376, 512), True


def _relu(dtype: torch.dtype, channels: int = 256, whole: bool = True) -> tuple[Any, ...]:
    """whole: with all that is optional."""
    x = torch.zeros(1, channels, 47, 63, dtype=dtype).contiguous(memory_format=torch.channels_last)
    if not whole:
        return x, None, None, float("inf"), None, False
    bias = torch.zeros(channels, dtype=F64 if dtype == F64 else F32)
    return x, bias, x.clone(), 6.0, torch.ones(1, 47, 63, dtype=torch.bool), True


CASES = {
    "climb_step bf16": ("climb_step", _step((2, 3, 375, 500), F32, BF16)),
    "climb_step fp64": ("climb_step", _step((2, 3, 64, 64), F64, F64)),
    "climb_loss fp32": ("climb_loss", _loss(F32, torch.contiguous_format)),
    "climb_loss bf16 channels_last": ("climb_loss", _loss(BF16, torch.channels_last)),
    "climb_loss fp64 channels_last": ("climb_loss", _loss(F64, torch.channels_last)),
    "cam_accumulate fp32": ("cam_accumulate", _cam(F32)),
    "cam_accumulate fp64": ("cam_accumulate", _cam(F64)),
    "masked_relu fp32": ("masked_relu", _relu(F32)),
    "masked_relu bf16": ("masked_relu", _relu(BF16)),
    "masked_relu fp64": ("masked_relu", _relu(F64)),
    "masked_relu fp32 plain": ("masked_relu", _relu(F32, whole=False)),
    "masked_relu_backward fp32": ("masked_relu_backward", (torch.zeros(300, 24), torch.zeros(900, dtype=torch.uint8))),
    "masked_relu_backward bf16": (
        "masked_relu_backward",
        (torch.zeros(300, 24, dtype=BF16), torch.zeros(900, dtype=torch.uint8)),
    ),
}
KERNELS = {
    "climb_step": ["_extrema", "_ascend"],
    "climb_loss": ["_pair", "_classes", "_objective"],
    "cam_accumulate": ["_accumulate", "_normalise"],
    "masked_relu": ["_rectify"],
    "masked_relu_backward": ["_keep"],
}


def _memory_of_a_thread(code: CompiledKernel, folder: Path) -> list[int]:
    """Bytes of local memory and, on AMD, vector registers, that a kernel spills to: all zero if it spills nothing."""
    if "amdgcn" in code.asm:
        return [
            int(n) for n in re.findall(r"\.(?:vgpr_spill_count|private_segment_fixed_size): +(\d+)", code.asm["amdgcn"])
        ]
    (folder / "kernel.cubin").write_bytes(code.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", folder / "kernel.cubin"]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.backend}-{t.arch}")
@pytest.mark.parametrize("case", CASES)
def test_compiles_without_spills_and_atomics(case: str, target: GPUTarget, tmp_path: Path) -> None:
    stem, arguments = CASES[case]
    names = []
    for name, code in _compiled(stem, arguments, target):
        names.append(name)
        assert "fp32" not in code.src.signature.values(), f"{name}: a scalar that float64 tensors need whole"
        assert _memory_of_a_thread(code, tmp_path) == [0, 0], name
        text = code.asm["ptx" if target.backend == "cuda" else "amdgcn"]
        assert not re.search(r"\batom\.|\bred\.|_atomic_", text), name
    assert names == KERNELS[stem]


def _ptx(arguments: tuple[Any, ...], stem: str = "climb_step") -> dict[str, str]:
    return {name: code.asm["ptx"] for name, code in _compiled(stem, arguments, SM_90)}


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 3, 375, 500)], ids=str)  # n divides by 16, and by 8 alone
@pytest.mark.parametrize("gradient", [F32, BF16], ids=str)
def test_streaming_kernels_move_16_bytes_at_a_time(shape: tuple[int, ...], gradient: torch.dtype) -> None:
    ptx = _ptx(_step(shape, F32, gradient))
    expected = 4 + 4 if gradient == F32 else 4 + 2  # 2048 elements by 128 threads, of image and gradient
    for name in ("_extrema", "_ascend"):
        assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx[name])) == expected, name
    # the new image, and the network's input in the gradient's dtype
    assert len(re.findall(r"st\.global\S*\.v4\.b32", ptx["_ascend"])) == expected


@pytest.mark.parametrize(("shape", "offset"), [((2, 3, 5, 9), 0), ((2, 3, 64, 64), 1)], ids=["n", "address"])
def test_unaligned_tensors_get_narrow_accesses(shape: tuple[int, ...], offset: int) -> None:
    ptx = _ptx(_step(shape, F32, F32, offset))
    for name in ("_extrema", "_ascend"):
        assert ".v4" not in ptx[name], name


def test_nan_is_kept_and_bf16_rounded_to_nearest() -> None:
    ptx = _ptx(_step((2, 3, 64, 64), F32, BF16))
    assert "max.NaN.f32" in ptx["_extrema"]
    assert not re.search(r"\bmax\.f32", ptx["_extrema"])
    assert "max.NaN.f32" in ptx["_ascend"]
    assert "cvt.rn.bf16" in ptx["_ascend"]


def _relu_accesses(dtype: torch.dtype, channels: int) -> tuple[int, int, int, int]:
    """128-bit loads and stores: forward, with a residual, and backward."""
    arguments = _relu(dtype, channels)
    bits = torch.zeros((arguments[0].numel() + 7) // 8, dtype=torch.uint8)
    forward = _ptx(arguments, "masked_relu")["_rectify"]
    backward = _ptx((arguments[0], bits), "masked_relu_backward")["_keep"]
    found = [len(re.findall(rf"{a}\.global\S*\.v4\.b32", text)) for text in (forward, backward) for a in ("ld", "st")]
    return found[0], found[1], found[2], found[3]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_masked_relu_moves_16_bytes_at_a_time(dtype: torch.dtype) -> None:
    """4096 bytes by 128 threads: two accesses; as many of the residual, and as many elements of the float32 bias."""
    for channels in (256, 24):  # 24: 8 divides the elements, 16 does not
        assert _relu_accesses(dtype, channels) == (2 + 2 + (2 if dtype == F32 else 4), 2, 2, 2)
    assert _relu_accesses(dtype, 21) == (0, 0, 0, 0), "x has an odd number of elements"


def test_masked_relu_rounds_each_sum_to_nearest() -> None:
    """16 elements a thread: after the bias by a conversion, after the residual so or by an addition."""
    ptx = _ptx(_relu(BF16), "masked_relu")["_rectify"]
    conversions = len(re.findall(r"cvt\.rn\.bf16\.f32", ptx))
    additions = len(re.findall(r"(?:add|fma)(?:\.rn)?\.bf16 ", ptx))
    assert conversions >= 16
    assert conversions + additions >= 32
    assert not re.search(r"cvt\.rz\.bf16", ptx)
