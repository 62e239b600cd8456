"""The benchmarks and the GPU command run to their ends, at sizes that say nothing about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advcam_fast.bench.cases import CASES, EVALUATION_CASES
from advcam_fast.bench.table import benchmark_table

ROOT = Path(__file__).parents[2]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # pytest-benchmark measures nothing where it thinks that pytest-xdist runs it
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    settings = {**own, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "", **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300
    )


def test_climb_benchmarks() -> None:
    done = run("-m", "pytest", "benchmarks/test_climb.py", "--tiny", "--benchmark-disable", "-k", "lite0 or images")
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.count(".") >= 4


def test_network_kernel_benchmarks() -> None:
    """Each is held against float64 before it is timed."""
    done = run("-m", "pytest", "benchmarks/test_network_kernels.py", "--tiny", "--benchmark-disable")
    assert done.returncode == 0, done.stdout[-4000:]


def test_kernel_benchmarks_and_their_table(tmp_path: Path) -> None:
    """Without torch.compile, which takes seconds a case; benchmarks/gpu.py below compiles one."""
    report = tmp_path / "report.json"
    options = ["--tiny", "--benchmark-max-time=0.001", "--benchmark-min-rounds=1", f"--benchmark-json={report}"]
    done = run("-m", "pytest", "benchmarks/test_kernels.py", "-k", "one_thread and not compiled", *options)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "data" not in json.loads(report.read_text())["benchmarks"][0]["stats"]
    table = benchmark_table(json.loads(report.read_text()))
    assert "| climb_loss, 1000 classes 24x32, 1 thread " in table
    assert table.count("×)") == sum(
        case.stem != "dense_crf" for case in (*CASES, *EVALUATION_CASES)
    )  # which has test_crf_peer.py


def test_end_to_end_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    options = ["--preset", "cam", "--dtype", "fp32", "mixed", "--size", "24", "32", "--images", "1", "--rounds", "1"]
    done = run("benchmarks/end_to_end.py", "efficientnet_lite0", *options, "--out", str(out))
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(out.read_text())["efficientnet_lite0, cam"]
    assert set(report["ratio"]) == {"fp32", "mixed"}
    assert set(report["share_of_probe"]) == {"fp32"}
    assert report["executor"] == "tape"
    options[3:5] = ["bf16"]
    done = run("benchmarks/end_to_end.py", "efficientnet_lite0", *options, "--steps-only", "--out", str(out))
    assert done.returncode == 0, done.stderr[-4000:]
    after = json.loads(out.read_text())["efficientnet_lite0, cam"]
    assert set(after.pop("share_of_probe")) == {"fp32", "bf16"}
    assert after["ratio"] == report["ratio"], "what was not measured stays"


def test_throughput_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    small = ["--images", "4", "--side", "32", "--batch", "2", "--rounds", "1", "--out", str(out)]
    done = run("benchmarks/throughput.py", *small)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(out.read_text())
    rows = {f"{what}, {source}" for what in ("reading", "judging", "training") for source in ("folder", "shards")}
    assert rows <= set(report) and all(report[row]["ours, images/s"] > 0 for row in rows)


def test_refine_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    out = tmp_path / "report.json"
    small = ["--images", "3", "--size", "75", "100", "--rounds", "1", "--out", str(out)]
    done = run("benchmarks/refine.py", *small)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = {name: row for name, row in json.loads(out.read_text()).items() if " against " in name}
    assert len(rows) == 3 and all(row["ours, images/s"] > 0 for row in rows.values())


def test_memory_benchmark() -> None:
    for kind in ("plain", "fp32", "bf16"):
        done = run("benchmarks/memory.py", "--network", "efficientnet_lite0", "--row", kind, "64", "96", "1")
        assert done.returncode == 0, done.stderr[-4000:]
        assert json.loads(done.stdout)["megabytes"] > 0


def test_evaluate_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = run("benchmarks/evaluate.py", "--images", "12", "--naive", "2", "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(out.read_text())["12 images, 20 thresholds"]["seconds"] > 0


def test_quality_benchmark(tmp_path: Path, real_data: Path) -> None:
    out = tmp_path / "report.json"
    done = run("benchmarks/quality.py", "horses", "--items", "1-2", "--preset", "cam", "--out", str(out))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "cam on horses 1-2: cam 0." in done.stdout and out.exists()


def test_drift_benchmark(tmp_path: Path, real_data: Path) -> None:
    """Rounding grows from step to step, and the fewer the bits the larger it is."""
    out, picture = tmp_path / "report.json", tmp_path / "drift.png"
    options = ["--every", "400", "--steps", "3", "--out", str(out), "--picture", str(picture)]
    done = run("benchmarks/drift.py", *options)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(out.read_text())["distance"]
    assert rows["fp32"][0] < 1e-5 < rows["bf16"][0] < 0.1 and rows["fp32"][0] < rows["fp32"][2]
    assert picture.stat().st_size > 1000


@pytest.fixture(scope="module")
def gpu_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    names = (
        "facts", "build", "triton kernels on the device", "kernel timings", "climb timings",
        "cases of the sanitizer", "memcheck",
    )  # fmt: skip
    only = [word for name in names for word in ("--only", name)]
    done = run("benchmarks/gpu.py", "--device", "cpu", "--quick", "--out", str(out), *only)
    report = json.loads(out.read_text())
    assert done.returncode == 0, done.stdout + done.stderr + json.dumps(report)
    assert list(report) == list(names)
    return report


def test_gpu_command_with_the_cpu_in_its_place(gpu_report) -> None:
    statuses = {name: result["status"] for name, result in gpu_report.items()}
    assert statuses.pop("memcheck") == "skipped"
    assert set(statuses.values()) == {"green"}, statuses
    assert gpu_report["build"]["kernels"] == "native"
    kernels, climbs = gpu_report["kernel timings"]["rows"], gpu_report["climb timings"]["rows"]
    assert {row["implementation"] for row in kernels} == {"native", "eager", "compiled"}
    ours = {"climber", "climber, no graphs", "climber, sizes mixed", "compute_maps"}
    assert {row["implementation"] for row in climbs} == {"plain", *ours}
    assert not [row for row in kernels + climbs if "error" in row]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so() -> None:
    done = run("benchmarks/gpu.py")
    assert done.returncode == 2
    assert done.stderr.startswith("no GPU: torch")
    assert done.stderr.count("\n") == 1


def test_dry_run_names_the_parts() -> None:
    assert "racecheck" in run("benchmarks/gpu.py", "--dry-run").stdout.splitlines()
