"""Builds of the CUDA sources with g++ and the CPU executor, one for each tool, each made once a session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from executor_kernels import Kernels

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = sorted((CSRC / "cuda").glob("*.cu"))
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # `#pragma unroll` is nvcc's

Build = Callable[..., Path]
Drive = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no g++ to compile the CUDA sources with")
    folder = tmp_path_factory.mktemp("executor")

    def compile_into(name: str, sources: list[Path], *flags: str, objects: list[Path] | None = None) -> Path:
        # nvcc knows no strict aliasing: a kernel may move floats as words
        common = ["-std=c++17", "-DADVCAM_EXECUTOR", "-fno-strict-aliasing", "-I", str(CSRC), "-I", str(HERE)]
        command = [compiler, *common, *WARNINGS, *flags, "-o", str(folder / name)]
        inputs = ["-x", "c++", *map(str, sources), "-x", "none", *map(str, objects or [])]
        done = subprocess.run([*command, *inputs], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder / name

    return compile_into


@pytest.fixture(scope="session")
def kernels(build: Build) -> Kernels:
    return Kernels(build("launchers.so", [HERE / "launchers.cpp", *KERNELS], "-O1", "-shared", "-fPIC"))


def driver(program: Path) -> Drive:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "report_signal_unsafe=0 halt_on_error=0"}
        return subprocess.run(
            [str(program), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **options, **environment},
            timeout=120,
        )

    return run


DRIVER = [HERE / "sanitizer_driver.cpp", HERE / "planted_bugs.cpp", *KERNELS]


@pytest.fixture(scope="session")
def asan(build: Build) -> Drive:
    """The kernels and the planted bugs with AddressSanitizer and UndefinedBehaviorSanitizer."""
    return driver(
        build("asan", DRIVER, "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    )


@pytest.fixture(scope="session")
def tsan(build: Build) -> Drive:
    """The same with ThreadSanitizer on the CUDA threads."""
    return driver(build("tsan", DRIVER, "-O1", "-g1", "-fsanitize=thread"))
