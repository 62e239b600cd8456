"""The page of a report: one HTML file with its style and scripts beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from advcam_fast.report.chart import HEIGHT, WIDTH, Chart
from advcam_fast.report.gallery import Gallery

STATIC = Path(__file__).parent / "static"
_ASSETS = ("report.css", "paint.js", "report.js")


@dataclass(frozen=True)
class PageFacts:
    """What the page says beside its gallery; tables are (name, value)."""

    title: str
    summary: Sequence[tuple[str, str]]
    charts: Sequence[Chart]
    tables: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    classes: Sequence[tuple[str, str, str]]  # name, images, IoU or nothing
    failures: Sequence[tuple[str, str]]
    failures_left_out: int
    has_masks: bool
    has_iou: bool


def write_page(folder: Path, gallery: Gallery, facts: PageFacts) -> None:
    """Writes index.html, its assets and data/index.js into the folder that the gallery is in."""
    # StrictUndefined and autoescape: a name is text wherever it stands, and a forgotten one is an error
    environment = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    html = environment.get_template("index.html").render(facts=facts, width=WIDTH, height=HEIGHT)
    (folder / "index.html").write_bytes(html.encode("utf-8", "replace"))
    for name in _ASSETS:
        (folder / name).write_bytes((STATIC / name).read_bytes())
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "index.js").write_text(gallery.index(facts.has_masks), encoding="ascii")
