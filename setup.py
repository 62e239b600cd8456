"""Runs CMake for advcam_fast._C. Every compiler fact lives in CMakeLists.txt, everything else in pyproject.toml."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "advcam_fast" / "__init__.py").read_text(), re.MULTILINE)
assert VERSION is not None


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        out = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        configure = [
            # --fresh: a cache left by an earlier pip names the ninja of a deleted build environment
            *("cmake", "--fresh", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DADVCAM_CUDA={os.environ.get('ADVCAM_CUDA', 'AUTO')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.check_call(configure)
        subprocess.check_call(["cmake", "--build", str(build), "--parallel", jobs])


setup(
    ext_modules=[Extension("advcam_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    version=VERSION[1] + os.environ.get("ADVCAM_LOCAL_VERSION", ""),  # "+cu13" tells a wheel with CUDA kernels
)
