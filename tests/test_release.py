"""What is released: an sdist from which everything can be built, and one version everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import advcam_fast as af

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of the files that git knows, as a release is made of."""
    if subprocess.run(["git", "rev-parse", "--git-dir"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("no git here to list the project's files")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})", source)
    return next(out.glob("*.tar.gz"))


def run(code: str, folder: Path, **environment: str) -> str:
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, env=settings, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


def test_the_sdist_holds_what_is_built_and_shown(sdist: Path) -> None:
    assert sdist.name == f"advcam_fast-{af.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = [ROOT / name for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "CITATION.cff")]
    wanted += [file for file in (ROOT / "csrc").rglob("*") if file.is_file()]
    wanted += (ROOT / "advcam_fast").rglob("*.py")
    wanted += (ROOT / "advcam_fast" / "report" / "static").iterdir()
    assert [name for file in wanted if (name := file.relative_to(ROOT).as_posix()) not in names] == []
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.soak
def test_the_sdist_is_built_and_installed(sdist: Path, tmp_path: Path) -> None:
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "there"), str(sdist)]
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    settings = {"PATH": tools, "ADVCAM_CUDA": "OFF"}
    run(
        f"import subprocess, sys; subprocess.check_call([sys.executable, '-m', 'pip', 'install', *{options!r}])",
        tmp_path,
        **settings,
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'there')!r})\n"
        "import numpy as np; from advcam_fast import _C\n"
        "bits = np.zeros(1, np.uint8); x = np.array([[-1, 2, 3]], np.float32)\n"
        "_C.masked_relu(x, None, None, float('inf'), None, bits); print(_C.__file__, x, bits)"
    )
    printed = run(code, tmp_path)
    assert str(tmp_path / "there") in printed and "[[0. 2. 3.]] [6]" in printed


def test_one_version_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", af.__version__), "semantic, three numbers"
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None and cited[1] == af.__version__
    changes = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes is not None and changes[1] == af.__version__


def test_a_wheel_with_cuda_kernels_is_told_by_its_version() -> None:
    said = [
        subprocess.run(
            [sys.executable, "setup.py", "--version"],
            cwd=ROOT,
            env=os.environ | {"ADVCAM_LOCAL_VERSION": local},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[-1]
        for local in ("", "+cu13")
    ]
    assert said == [af.__version__, f"{af.__version__}+cu13"]


def test_both_papers_are_cited() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["license"] == "Apache-2.0" and cited["cff-version"] == "1.2.0"
    papers = {paper["identifiers"][0]["value"] for paper in cited["references"]}
    assert papers == {"arXiv:2103.08896", "arXiv:2204.04890"}


@pytest.mark.parametrize("file", ["pyproject.toml", "wheels-cuda13.toml"])
def test_wheels_use_torchs_openmp_and_say_which_kernels_they_have(file: str) -> None:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    wheels = tomllib.loads((ROOT / file).read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    assert "--exclude libgomp.so.1" in wheels["linux"]["repair-wheel-command"]
    cuda = file != "pyproject.toml"
    assert wheels["linux"]["environment"]["ADVCAM_CUDA"] == ("ON" if cuda else "OFF")
    assert ("ADVCAM_LOCAL_VERSION" in wheels["linux"]["environment"]) == cuda
