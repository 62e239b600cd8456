"""The layering rule and the sizes of the house, held over every file of the package."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "advcam_fast"

# A module may import those of a lower rank, and its own folder. Rank 0 is below all.
RANKS = {
    "errors": 0,
    "_interrupt": 0,
    "_C": 0,
    "_native": 1,
    "options": 1,
    "ops": 2,
    **dict.fromkeys(("models", "data"), 3),
    **dict.fromkeys(("climb", "refine", "train", "metrics", "store", "export", "report"), 4),
    "": 5,  # advcam_fast itself: the public names
    "pipelines": 6,
    "compat": 7,
    "bench": 8,
    "cli": 9,
    "__main__": 10,
}

MODULES = sorted(PACKAGE.rglob("*.py"))
TEXTS = (".py", ".cpp", ".cu", ".cuh", ".h", ".toml", ".md", ".txt", ".csv", ".json", ".yml", ".html", "")
MOST_LINES, MOST_FUNCTION_LINES = 400, 60

# Written so that this file does not hold them itself.
MACHINE_PATH = re.compile(r"(?<![\w.}\])/])/(?:" + "|".join(("work", "root", "home", "Users")) + r")/")


def top(module: str) -> str:
    """advcam_fast.climb.maps -> climb; advcam_fast -> the empty name."""
    return [*module.split("."), ""][1]


def imported(source: str, package: str) -> set[str]:
    """Every advcam_fast module that a source of `package` imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "advcam_fast" else {module}
    return {name for name in found if name.split(".")[0] == "advcam_fast"}


def ranked(name: str) -> str:
    """The folder or file of a module's first part: a public name such as advcam_fast.CamModel is the package's own."""
    return top(name) if top(name) in RANKS or (PACKAGE / top(name)).is_dir() else ""


def offences(file: Path, source: str) -> list[str]:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    own = "" if parts == ("__init__",) else parts[0]
    package = ".".join(("advcam_fast", *parts[:-1]))
    wrong = []
    for name in sorted(imported(source, package)):
        other = ranked(name)
        if other != own and RANKS[other] >= RANKS[own]:
            wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    return wrong


def test_imports_go_one_way() -> None:
    assert [line for file in MODULES for line in offences(file, file.read_text())] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/climb_step.py", "from advcam_fast.models import CamModel"),
        ("ops/climb_step.py", "import advcam_fast"),
        ("ops/climb_step.py", "from ..climb import maps"),
        ("data/images.py", "def f():\n    import advcam_fast.store.files"),
        ("models/load.py", "from advcam_fast.data import read_image"),
        ("store/maps.py", "from advcam_fast.climb.config import ClimbConfig"),
        ("climb/maps.py", "from advcam_fast import pipelines"),
        ("climb/maps.py", "from advcam_fast import load_model"),
        ("pipelines/label.py", "from advcam_fast.cli import app"),
        ("compat/torchcam.py", "from advcam_fast.bench.table import markdown"),
        ("errors.py", "from advcam_fast import ops"),
    ],
)
def test_an_import_upwards_is_seen(file: str, source: str) -> None:
    assert len(offences(PACKAGE / file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("bench/gpu.py", "from advcam_fast.climb import ClimbConfig\nimport advcam_fast as af"),
        ("climb/maps.py", "from advcam_fast import ops\nfrom advcam_fast.climb.plan import plan_batches"),
        ("ops/climb_step.py", "from . import reference\nfrom advcam_fast._native import NATIVE\nimport torch"),
        ("__init__.py", "from advcam_fast import ops\nfrom advcam_fast.climb import compute_maps"),
        ("pipelines/doctor.py", "import advcam_fast\nfrom advcam_fast import _native, ops"),
    ],
)
def test_an_import_downwards_is_right(file: str, source: str) -> None:
    assert offences(PACKAGE / file, source) == []


def test_every_module_has_a_rank() -> None:
    assert MODULES
    assert {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in MODULES} - {"__init__"} <= RANKS.keys()


def test_kernels_know_no_torch() -> None:
    sources = [file for file in (ROOT / "csrc").rglob("*") if file.is_file()]
    assert len(sources) > 10
    torch_header = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|THC?)/')
    assert torch_header.search('#include <torch/extension.h>\n# include "ATen/ATen.h"')
    assert [file.name for file in sources if torch_header.search(file.read_text())] == []


def python_files() -> list[Path]:
    folders = (PACKAGE, *(ROOT / name for name in ("tests", "benchmarks", "examples")))
    return [ROOT / "setup.py", *(file for folder in folders for file in sorted(folder.rglob("*.py")))]


def source_files() -> list[Path]:
    native = (".cpp", ".cu", ".cuh", ".h")
    folders = (ROOT / "csrc", ROOT / "tests")
    return python_files() + [file for folder in folders for file in folder.rglob("*") if file.suffix in native]


def test_no_file_is_long() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in source_files()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_function_is_long() -> None:
    long = []
    for file in python_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    long.append(f"{file.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert long == []


def test_no_path_of_a_machine_is_named() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("no git here to list the project's files")
    files = [ROOT / name for name in listed.stdout.splitlines() if Path(name).suffix in TEXTS]
    assert len(files) > 50
    assert MACHINE_PATH.search("cd " + "/wor" + "k/main") and not MACHINE_PATH.search("out/" + "work/x")
    assert [str(file) for file in files if file.is_file() and MACHINE_PATH.search(file.read_text())] == []
