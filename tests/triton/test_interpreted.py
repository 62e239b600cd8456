"""Runs tests/triton/kernels in Triton's interpreter, where there is no GPU to run them on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("triton.language", reason="triton is not installed")  # not "triton": this folder has that name
KERNELS = Path(__file__).parent / "kernels"


def test_kernels_interpreted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", KERNELS, "-q", f"--junitxml={report}", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    run = subprocess.run(command, env=environment, cwd=KERNELS.parents[2], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert not [case.get("name") for case in cases if case.find("skipped") is not None]
    ran = {str(case.get("classname")).rpartition(".")[2] for case in cases}
    assert ran == {path.stem for path in KERNELS.glob("test_*.py")}
