"""What nvcc makes of the kernels, for both architectures: no spills, few registers, wide accesses, no needless FP64."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import CSRC, HERE, KERNELS
from machine_code import Kernel, find_tool, read_kernels

ARCHITECTURES = (80, 90)
REGISTERS = 64  # two blocks of 512 threads, or four of 256, on every multiprocessor
# of float64 kernels: a call of the division, and elements that are chosen
NO_ARITHMETIC = ("cam_accumulate_normalise", "masked_relu_keep")
SIZES = {"float": 4, "double": 8, "__half": 2, "__nv_bfloat16": 2, "Absent": 0}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Kernel]]:
    """The kernels of each .cu file by its stem."""
    nvcc, cuobjdump = shutil.which("nvcc"), find_tool("cuobjdump")
    if nvcc is None or cuobjdump is None or shutil.which("c++filt") is None:
        pytest.skip("the machine code needs nvcc, cuobjdump (in triton's wheel) and c++filt")
    folder: Path = tmp_path_factory.mktemp("fatbins")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    kernels = {}
    for source in [*KERNELS, HERE / "planted_machine_code.cu"]:
        fatbin = folder / f"{source.stem}.fatbin"
        command = [nvcc, "-std=c++17", "-O3", "-I", str(CSRC), *targets, "--fatbin", str(source), "-o", str(fatbin)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        kernels[source.stem] = read_kernels(fatbin, cuobjdump)
    return kernels


@pytest.fixture(scope="session")
def kernels(compiled: dict[str, list[Kernel]]) -> list[Kernel]:
    return [kernel for source in KERNELS for kernel in compiled[source.stem]]


@pytest.fixture(scope="session")
def planted(compiled: dict[str, list[Kernel]]) -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in compiled["planted_machine_code"] if kernel.architecture == 90}


def uses_stack(kernel: Kernel) -> bool:
    return bool(kernel.stack or kernel.local or kernel.widths("LDL") or kernel.widths("STL"))


def template_arguments(kernel: Kernel) -> list[str]:
    return re.search(r"<(.*)>", kernel.name)[1].split(", ")  # type: ignore[index]


def bytes_moved(kernel: Kernel, operation: str) -> int:
    """By the accesses of packs: those wider than an element of the computation, which the reductions move singly."""
    element = 8 if "double" in kernel.name else 4
    return sum(width for width in kernel.widths(operation) if width > element)


def vector_variants(kernels: list[Kernel], stem: str, position: int) -> list[tuple[Kernel, list[str]]]:
    """Kernels called `stem` whose template argument at `position`, the pack's width, is over 1."""
    named = [(k, template_arguments(k)) for k in kernels if k.name.startswith(f"{stem}<")]
    found = [(k, arguments) for k, arguments in named if int(arguments[position]) > 1]
    assert found, f"no vector variant of {stem}"
    return found


def test_both_architectures_hold_every_kernel(kernels: list[Kernel]) -> None:
    names = [{k.name for k in kernels if k.architecture == a} for a in ARCHITECTURES]
    assert names[0] == names[1]
    assert {name.split("<")[0] for name in names[0]} == {
        "climb_step_extrema",
        "climb_step_apply",
        "climb_loss_rows",
        "climb_loss_columns",
        "climb_loss_groups",
        "cam_accumulate_add",
        "cam_accumulate_normalise",
        "masked_relu_forward",
        "masked_relu_keep",
        "max_pool_forward",
        "max_pool_gather",
        "random_walk_start",
        "random_walk_affinity",
        "random_walk_sums",
        "random_walk_step",
        "centroid_walk_move",
        "centroid_walk_label",
        "dense_crf_clear",
        "dense_crf_insert",
        "dense_crf_number",
        "dense_crf_corners",
        "dense_crf_link",
        "dense_crf_splat",
        "dense_crf_blur",
        "dense_crf_slice",
        "dense_crf_softmax",
        "threshold_sweep_clear",
        "threshold_sweep_count",
        "threshold_sweep_sum",
        "component_boxes_sweep",
        "component_boxes_offsets",
    }


def test_no_kernel_uses_the_stack(kernels: list[Kernel], planted: dict[str, Kernel]) -> None:
    assert [k for k in kernels if uses_stack(k)] == []
    assert uses_stack(planted["planted_stack"]), "the planted fault went unseen"


def test_registers(kernels: list[Kernel], planted: dict[str, Kernel]) -> None:
    assert {k.name: k.registers for k in kernels if k.registers > REGISTERS} == {}
    assert planted["planted_registers"].registers > REGISTERS, "the planted fault went unseen"


def test_float_kernels_hold_no_double_precision(kernels: list[Kernel], planted: dict[str, Kernel]) -> None:
    floats = [k for k in kernels if "double" not in k.name]
    assert {k.name: k.float64_opcodes() for k in floats if k.float64_opcodes()} == {}
    assert all(k.float64_opcodes() for k in kernels if "double" in k.name and not k.name.startswith(NO_ARITHMETIC))
    assert planted["planted_float64"].float64_opcodes(), "the planted fault went unseen"


def test_climb_step_moves_the_minimum(kernels: list[Kernel]) -> None:
    for kernel, (image, gradient, _) in vector_variants(kernels, "climb_step_extrema", 2):
        loads = kernel.widths("LDG")
        elements = loads.count(16) * 16 / (SIZES[image] + (SIZES[gradient] if image == gradient else 0))
        assert elements and sum(loads) == elements * (SIZES[image] + SIZES[gradient]), kernel.name
    for kernel, (image, gradient, network, _) in vector_variants(kernels, "climb_step_apply", 3):
        elements = kernel.widths("STG").count(16) * 16 / SIZES[image]
        assert elements and bytes_moved(kernel, "LDG") == elements * (SIZES[image] + SIZES[gradient]), kernel.name
        assert bytes_moved(kernel, "STG") == elements * (SIZES[image] + SIZES[network]), kernel.name


@pytest.mark.parametrize("stem", ["climb_loss_rows", "climb_loss_columns"])
def test_climb_loss_moves_the_minimum(kernels: list[Kernel], stem: str) -> None:
    for kernel, _ in vector_variants(kernels, stem, 1):
        assert kernel.widths("LDG").count(16) == kernel.widths("STG").count(16) > 0, kernel.name
        assert bytes_moved(kernel, "LDG") == bytes_moved(kernel, "STG") == 16 * kernel.widths("LDG").count(16)


def test_cam_accumulate_moves_the_minimum(kernels: list[Kernel]) -> None:
    for kernel, _ in vector_variants(kernels, "cam_accumulate_add", 1):
        assert bytes_moved(kernel, "LDG") == 2 * bytes_moved(kernel, "STG") == 32, kernel.name
    for kernel, _ in vector_variants(kernels, "cam_accumulate_normalise", 1):
        assert bytes_moved(kernel, "LDG") == bytes_moved(kernel, "STG") > 0, kernel.name


def test_masked_relu_moves_the_minimum(kernels: list[Kernel]) -> None:
    """Eight elements a thread in the widest packs; the narrower accesses are those of the last thread."""
    for kernel, (dtype, _) in vector_variants(kernels, "masked_relu_forward", 1):
        size, wide = SIZES[dtype], max(SIZES[dtype], 4)
        assert kernel.widths("LDG").count(16) == (8 * size + 8 * size + 8 * wide) // 16, (
            f"{kernel.name}: x, residual, bias"
        )
        assert kernel.widths("STG").count(16) == 8 * size // 16, kernel.name
        assert kernel.widths("STG").count(1) == 1, f"{kernel.name}: one byte of bits"
    for kernel, (dtype, _) in vector_variants(kernels, "masked_relu_keep", 1):
        assert kernel.widths("LDG").count(16) == kernel.widths("STG").count(16) == 8 * SIZES[dtype] // 16, kernel.name
        assert kernel.widths("LDG").count(1) == 1, f"{kernel.name}: one byte of bits"


def test_max_pool_moves_packs(kernels: list[Kernel]) -> None:
    """A load of 16 bytes for every element of a window, and one store; a byte for each of their channels."""
    for kernel, (dtype, width) in vector_variants(kernels, "max_pool_forward", 1):
        assert set(kernel.widths("LDG")) == {16}, kernel.name
        assert sorted(kernel.widths("STG")) == [16 // SIZES[dtype], 16], kernel.name
        assert int(width) == 16 // SIZES[dtype]
    for kernel, (dtype, _) in vector_variants(kernels, "max_pool_gather", 1):
        assert set(kernel.widths("LDG")) == {16, 16 // SIZES[dtype]}, kernel.name
        assert kernel.widths("STG") == [16], kernel.name


def test_a_step_of_the_walk_takes_its_neighbours_from_shared_memory(kernels: list[Kernel]) -> None:
    """Both neighbours of an offset for every label; none where the radius is too large for it."""
    tiled = {}
    for kernel in (k for k in kernels if k.name.startswith("random_walk_step<")):
        _, labels, tile = template_arguments(kernel)
        tiled[tile] = len(kernel.widths("LDS")) >= 2 * int(labels)
        assert tiled[tile] or not kernel.widths("LDS"), kernel.name
    assert sorted(tiled.values()) == [False, True]


def test_dense_crf_moves_vertices_in_one_piece(kernels: list[Kernel]) -> None:
    """A vertex of 16 bytes: three are read and one written by an axis of the blur, each corner's read by the slice."""
    for kernel in [k for k in kernels if k.name.startswith(("dense_crf_blur<", "dense_crf_slice<"))]:
        dtype, second = template_arguments(kernel)
        wide = kernel.widths("LDG").count(16)
        if kernel.name.startswith("dense_crf_slice"):
            assert wide == int(second), kernel.name
        else:  # the first axis reads 64 bits a channel
            assert wide == 3 * (1 if second == dtype else 8 // SIZES[dtype]), kernel.name
            assert kernel.widths("STG") == [16], kernel.name


def test_threshold_sweep_takes_maps_in_the_widest_packs(kernels: list[Kernel]) -> None:
    for kernel, (dtype, width, _) in vector_variants(kernels, "threshold_sweep_count", 1):
        assert int(width) * SIZES[dtype] == 16 and 16 in kernel.widths("LDG"), kernel.name
        assert int(width) in kernel.widths("LDG"), f"{kernel.name}: its labels"


def test_the_gate_sees_narrow_accesses(planted: dict[str, Kernel]) -> None:
    scalar = planted["planted_scalar"]
    assert set(scalar.widths("LDG")) == set(scalar.widths("STG")) == {4}
    assert bytes_moved(scalar, "LDG") == 0, "the planted fault went unseen"
