"""report on the command line, with masks and without."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CLASSES, Ended, save_list

ROWS = [("a.png", CLASSES[2]), ("b/c.png", f"{CLASSES[3]};{CLASSES[0]}"), ("d.png", "")]


@pytest.fixture
def labelled(label: Callable[..., Ended], tmp_path: Path) -> Path:
    assert label(save_list(tmp_path / "photos", ROWS), tmp_path / "run").code == 0
    return tmp_path / "run"


def test_a_page_before_and_after_refine(labelled: Path, run: Callable[..., Ended]) -> None:
    ended = run("report", "--run", labelled)
    assert ended.code == 0, ended.err
    page = labelled / "report" / "index.html"
    assert f"open {page} in a browser" in ended.err and "3 of 3 images have been drawn" in ended.err
    assert "Run refine first" in page.read_text(encoding="utf-8")
    assert run("refine", "--run", labelled).code == 0
    assert run("report", "--run", labelled, "--json").json()["page"] == str(page)
    html = page.read_text(encoding="utf-8")
    assert "Run refine first" not in html
    assert "[bold]:cat:" in html and "tricky, &#34;quoted&#34;/slashed 🐈" in html
    assert sorted(path.name for path in (labelled / "report").iterdir()) == [
        *("data", "index.html", "paint.js", "report.css", "report.js", "thumbs")
    ]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--data", "csv:nowhere.csv"), "nowhere.csv"),
        (("--out", "/dev/null/report"), "no report can be written here"),
        (("--masks", "nowhere"), "nowhere is no run folder"),
        (("--run", "nothing"), "nothing is no run folder"),
    ],
)
def test_bad_options_are_one_line(labelled: Path, run: Callable[..., Ended], more: tuple, text: str) -> None:
    ended = run("report", "--run", labelled, *more)
    assert ended.code == 2
    assert text in ended.error
    assert not (labelled / "report").exists()


def test_a_run_without_maps(label: Callable[..., Ended], run: Callable[..., Ended], tmp_path: Path) -> None:
    data = save_list(tmp_path / "photos", ROWS[:1])
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    assert label(data, tmp_path / "run").code == 3
    ended = run("report", "--run", tmp_path / "run")
    assert ended.code == 2 and "no image of this run has maps" in ended.error
