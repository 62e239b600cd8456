"""What the documents say: their Python runs, their links and pictures are there."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from sample_run import make_run

from advcam_fast.cli.app import app
from advcam_fast.data import open_dataset
from advcam_fast.pipelines.export import ExportSource, export_run
from advcam_fast.store import RunFolder

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `advcam-fast ...` and `-m advcam_fast ...` of a page."""
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    text = re.sub(r"^.* -m advcam_fast ", "advcam-fast ", re.sub(r"\s#.*", "", text), flags=re.MULTILINE)
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("advcam-fast ")]


@pytest.fixture(scope="module")
def run_of_a_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its masks, and exports of it."""
    folder = tmp_path_factory.mktemp("reader")
    sample = make_run(folder)
    source = ExportSource.read(RunFolder.read(sample.path), sample.path / "masks", ["coco"])
    export_run(source, open_dataset(sample.data), ["coco"], folder / "exported")
    return folder


def readers_own() -> dict[str, Any]:
    """What a reader of the README has: a network of torchvision, and an image for it."""
    import torch
    import torchvision

    return {"network": torchvision.models.resnet18(num_classes=4), "x": torch.rand(1, 3, 64, 64)}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_block_of_python_runs(
    page: Path, tmp_path: Path, run_of_a_reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run", "exported"):
        Path(name).symlink_to(run_of_a_reader / name)
    draw = np.random.default_rng(0)
    for name in ("cat.jpg", "dog.png"):
        Image.fromarray(draw.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(name)
    space = readers_own()
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), space)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_has_the_options_it_is_shown_with(page: Path) -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for verb, *arguments in commands(page):
        assert verb in verbs, f"{page.name}: {verb}"
        verbs[verb].make_context(verb, arguments)  # parsed, not run: an unknown option is an exception that names it


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_menu_and_every_entry_is_a_page() -> None:
    menu = set(re.findall(r"^ +- .*?: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert menu == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_equations_become_mathml() -> None:
    pytest.importorskip("latex2mathml", reason="latex2mathml is not installed: the extra [docs]")
    draw = runpy.run_path(str(ROOT / "docs" / "mathml.py"))["on_page_content"]
    drawn = draw('a <span class="arithmatex">\\(x &gt; 1\\)</span> <div class="arithmatex">\\[T^{256}\\]</div> b')
    assert drawn.startswith("a <math") and drawn.endswith("</math> b") and drawn.count("<math") == 2
    assert "arithmatex" not in drawn and 'display="block"' in drawn and "256" in drawn
