"""The CUDA launchers, run on the CPU executor through ctypes. Outputs and workspaces begin as NaN."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from executor_arguments import (
    ARGUMENTS,
    CamAccumulateArguments,
    CentroidWalkArguments,
    ClimbLossArguments,
    ClimbStepArguments,
    DenseCrfArguments,
    MaskedReluArguments,
    MaskedReluBackwardArguments,
    MaxPoolArguments,
    MaxPoolBackwardArguments,
    Pooling,
    RandomWalkArguments,
)
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # the order of csrc/dtype.h, then none
NONE = 4
STEP_PARTS, STEP_FIELDS, ACCUMULATE_PARTS = 64, 3, 64  # the constants of csrc/*.h


def load_reference() -> ModuleType:
    """advcam_fast/ops/reference.py from its file: the oracle needs no built package."""
    path = Path(__file__).parents[2] / "advcam_fast" / "ops" / "reference.py"
    spec = importlib.util.spec_from_file_location("advcam_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_reference()


Window = tuple[tuple[int, int], ...]  # kernel, stride, padding, dilation; each (vertical, horizontal)


class Loss(NamedTuple):
    objective: Tensor  # [groups]
    gradient: Tensor | None  # like logit_map
    pair_map: Tensor  # [groups, h, w]
    mask: Tensor  # [groups, h, w]
    score: Tensor  # [B, C]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _poison(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


class Kernels:
    """The launchers of one shared library. A text returned by a launcher is raised as RuntimeError."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        for name, structure in ARGUMENTS.items():
            launcher = getattr(self.library, name)
            launcher.argtypes = [ctypes.POINTER(structure), ctypes.c_void_p, ctypes.c_int]
            launcher.restype = ctypes.c_char_p
        self.library.dense_crf_workspace.restype = ctypes.c_int64
        self.library.component_boxes_workspace.restype = ctypes.c_int64
        self.library.launch_count.restype = ctypes.c_int64
        bytes_in_c = (ctypes.c_int64 * len(ARGUMENTS))()
        self.library.argument_bytes(bytes_in_c)
        assert list(bytes_in_c) == [ctypes.sizeof(a) for a in ARGUMENTS.values()], "csrc/*.h and this file disagree"

    def run(self, name: str, arguments: ctypes.Structure, workspace: Tensor, device: int = 0) -> None:
        error = getattr(self.library, name)(ctypes.byref(arguments), workspace.data_ptr(), device)
        if error is not None:
            raise RuntimeError(error.decode())

    def launches(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(grid, block) of every launch since the last call."""
        shapes = []
        for i in range(self.library.launch_count()):
            shape = (ctypes.c_uint * 6)()
            self.library.launch_shape(ctypes.c_int64(i), shape)
            shapes.append((tuple(shape[:3]), tuple(shape[3:])))
        self.library.forget_launches()
        return shapes

    def climb_step(
        self,
        image: Tensor,  # [groups, n], written
        gradient: Tensor,  # [groups, n]
        step: float,
        network_input: Tensor | None = None,  # [groups, n], written
        device: int = 0,
    ) -> Tensor:  # [groups]
        groups, n = image.shape
        largest = _poison((groups,), image.dtype)
        arguments = ClimbStepArguments(
            image=_pointer(image),
            gradient=_pointer(gradient),
            network_input=_pointer(network_input),
            gradient_max=_pointer(largest),
            image_dtype=DTYPES.index(image.dtype),
            gradient_dtype=DTYPES.index(gradient.dtype),
            network_dtype=NONE if network_input is None else DTYPES.index(network_input.dtype),
            groups=groups,
            n=n,
            step=step,
        )
        self.run("climb_step", arguments, _poison((groups, STEP_PARTS, STEP_FIELDS), image.dtype), device)
        return largest

    def climb_loss(
        self,
        logit_map: Tensor,  # [B, C, h, w], contiguous or channels-last
        target: Tensor,  # [groups]
        weight: Tensor,  # [groups, C]
        positive: Tensor,  # [groups]
        initial_map: Tensor | None = None,  # [groups, h, w]
        suppression: float = 0.0,
        mask_threshold: float = 0.5,
        rectify: bool = True,
        group_size: int = 2,
        want_gradient: bool = True,
    ) -> Loss:
        items, classes, height, width = logit_map.shape
        groups, acc = items // group_size, weight.dtype
        out = Loss(
            _poison((groups,), acc),
            torch.full_like(logit_map, float("nan")) if want_gradient else None,
            _poison((groups, height, width), acc),
            torch.full((groups, height, width), 7, dtype=torch.uint8),
            _poison((items, classes), acc),
        )
        planar = logit_map.is_contiguous()
        arguments = ClimbLossArguments(
            logit_map=_pointer(logit_map),
            target=_pointer(target),
            weight=_pointer(weight),
            positive=_pointer(positive),
            initial_map=_pointer(initial_map),
            **{name: _pointer(tensor) for name, tensor in out._asdict().items()},
            dtype=DTYPES.index(logit_map.dtype),
            groups=groups,
            classes=classes,
            height=height,
            width=width,
            members=group_size,
            stride_item=classes * height * width,
            stride_class=height * width if planar else 1,
            stride_pixel=1 if planar else classes,
            suppression=suppression,
            mask_threshold=mask_threshold,
            rectify=rectify,
        )
        self.run("climb_loss", arguments, torch.empty(0))
        return out

    def cam_accumulate(
        self,
        maps: list[Tensor],  # each [N, h_s, w_s]
        total: Tensor,  # [N, H, W], written
        size: tuple[int, int],
        normalise: bool = False,
    ) -> Tensor:
        arguments = CamAccumulateArguments(
            scales=len(maps),
            total=_pointer(total),
            count=total.shape[0],
            height=total.shape[1],
            width=total.shape[2],
            rows=size[0],
            columns=size[1],
            dtype=DTYPES.index(total.dtype),
            normalise=normalise,
        )
        for s, scale_map in enumerate(maps):
            arguments.map[s] = _pointer(scale_map)
            arguments.map_height[s], arguments.map_width[s] = scale_map.shape[1:]
        self.run("cam_accumulate", arguments, _poison((total.shape[0], ACCUMULATE_PARTS), total.dtype))
        return total

    def masked_relu(
        self,
        x: Tensor,  # [rows, channels], written
        bias: Tensor | None = None,  # [channels]
        residual: Tensor | None = None,  # like x
        ceiling: float = float("inf"),
        valid: Tensor | None = None,  # [rows]
        save: bool = True,
        device: int = 0,
    ) -> Tensor | None:  # [ceil(numel / 8)]
        bits = torch.full(((x.numel() + 7) // 8,), 0xFF, dtype=torch.uint8) if save else None
        arguments = MaskedReluArguments(
            x=_pointer(x),
            bias=_pointer(bias),
            residual=_pointer(residual),
            valid=_pointer(valid),
            bits=_pointer(bits),
            dtype=DTYPES.index(x.dtype),
            rows=x.shape[0],
            channels=x.shape[1],
            ceiling=ceiling,
        )
        self.run("masked_relu", arguments, torch.empty(0), device)
        return bits

    def masked_relu_backward(self, gradient: Tensor, bits: Tensor) -> Tensor:
        arguments = MaskedReluBackwardArguments(
            gradient=_pointer(gradient),
            bits=_pointer(bits),
            dtype=DTYPES.index(gradient.dtype),
            n=gradient.numel(),
        )
        self.run("masked_relu_backward", arguments, torch.empty(0))
        return gradient

    def max_pool(
        self,
        x: Tensor,  # [batch, height, width, channels]
        windows: tuple[int, int],  # how many there are
        window: Window,
        save: bool = True,
        device: int = 0,
    ) -> tuple[Tensor, Tensor | None]:  # [batch, *windows, channels] each
        y = _poison((len(x), *windows, x.shape[3]), x.dtype)
        at = torch.full(y.shape, 0xFF, dtype=torch.uint8) if save else None
        pooling = Pooling(*x.shape, *windows, *((ctypes.c_int64 * 2)(*part) for part in window))
        arguments = MaxPoolArguments(_pointer(x), _pointer(y), _pointer(at), DTYPES.index(x.dtype), pooling)
        self.run("max_pool", arguments, torch.empty(0), device)
        return y, at

    def max_pool_backward(
        self,
        gradient: Tensor,  # [batch, rows, columns, channels]
        at: Tensor,  # like gradient
        size: tuple[int, int],  # of x
        window: Window,
    ) -> Tensor:  # [batch, *size, channels]
        batch, *windows, channels = gradient.shape
        found = _poison((batch, *size, channels), gradient.dtype)
        pooling = Pooling(batch, *size, channels, *windows, *((ctypes.c_int64 * 2)(*part) for part in window))
        arguments = MaxPoolBackwardArguments(
            _pointer(gradient), _pointer(at), _pointer(found), DTYPES.index(gradient.dtype), pooling
        )
        self.run("max_pool_backward", arguments, torch.empty(0))
        return found

    def random_walk(
        self,
        maps: Tensor,  # [B, N, h, w]
        guide: Tensor,  # [B, h, w]: the boundary; [B, C, h, w]: colours
        radius: int = 5,
        scale: float = 10.0,
        steps: int = 4,
        restart: float = 0.0,
        device: int = 0,
    ) -> Tensor:  # [B, N, h, w]
        batch, labels, height, width = maps.shape
        out = _poison(maps.shape, maps.dtype)
        arguments = RandomWalkArguments(
            maps=_pointer(maps),
            guide=_pointer(guide),
            out=_pointer(out),
            batch=batch,
            labels=labels,
            height=height,
            width=width,
            channels=guide.shape[1] if guide.ndim == 4 else 1,
            radius=radius,
            steps=steps,
            scale=scale,
            restart=restart,
            dtype=DTYPES.index(maps.dtype),
            color=guide.ndim == 4,
        )
        reach = range(1 - radius, radius)
        planes = sum(y * y + x * x < radius**2 and (y, x) > (0, 0) for y in range(radius) for x in reach)
        self.run("random_walk", arguments, _poison((batch, planes + 2 + labels, height, width), maps.dtype), device)
        return out

    def centroid_walk(
        self,
        displacement: Tensor,  # [B, 2, h, w]
        steps: int = 300,
        threshold: float = 2.5,
        device: int = 0,
    ) -> tuple[Tensor, Tensor]:  # [B, 2, h, w], [B, h, w]
        batch, _, height, width = displacement.shape
        centroids = _poison(displacement.shape, displacement.dtype)
        labels = torch.full((batch, height, width), -7)
        arguments = CentroidWalkArguments(
            displacement=_pointer(displacement),
            centroids=_pointer(centroids),
            labels=_pointer(labels),
            batch=batch,
            height=height,
            width=width,
            steps=steps,
            threshold=threshold,
            dtype=DTYPES.index(displacement.dtype),
        )
        self.run("centroid_walk", arguments, torch.full((batch, 2, height, width), -(2**30), dtype=torch.int32), device)
        return centroids, labels

    def dense_crf(
        self,
        images: Tensor,  # uint8 [B, H, W, 3]
        unary: Tensor,  # [B, S, L, H, W]
        steps: int = 10,
        gaussian: tuple[float, float] | None = (3.0, 3.0),
        bilateral: tuple[float, float, float] | None = (50.0, 5.0, 10.0),
    ) -> Tensor:  # like unary
        probability = _poison(unary.shape, unary.dtype)
        arguments = DenseCrfArguments(
            images=_pointer(images),
            unary=_pointer(unary),
            probability=_pointer(probability),
            dtype=DTYPES.index(unary.dtype),
            **dict(zip(("batch", "sets", "labels", "height", "width"), unary.shape, strict=True)),
            steps=steps,
            **dict(zip(("gaussian_sxy", "gaussian_weight"), gaussian or (1, 0), strict=True)),
            **dict(zip(("bilateral_sxy", "bilateral_srgb", "bilateral_weight"), bilateral or (1, 1, 0), strict=True)),
        )
        size = self.library.dense_crf_workspace(ctypes.byref(arguments))
        self.run("dense_crf", arguments, torch.full((size,), 0xFF, dtype=torch.uint8))
        return probability
