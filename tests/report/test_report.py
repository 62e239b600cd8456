"""What a report is written of, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_run import make_report, write_metrics
from sample_run import HOSTILE, IMAGES, SampleRun, make_run

from advcam_fast.errors import UsageError
from advcam_fast.report.chart import line_chart
from advcam_fast.report.gallery import focus, script_json
from advcam_fast.store import RunFolder


@pytest.fixture
def sample(tmp_path: Path) -> SampleRun:
    return make_run(tmp_path, IMAGES[:3])


def index(report: Path) -> dict:
    return json.loads((report / "data" / "index.js").read_text().removeprefix("window.advcamIndex = ").rstrip(";\n"))


def test_an_older_report_is_replaced_and_nothing_else_is(sample: SampleRun, tmp_path: Path) -> None:
    report = sample.path / "report"
    assert make_report(sample, report) == []
    (report / "left").write_text("from before")
    assert make_report(sample, report) == []
    assert not (report / "left").exists()
    assert not list(sample.path.glob(".report*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="mine is no report and not empty"):
        make_report(sample, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UsageError, match="no report can be written here"):
        make_report(sample, Path("/dev/null/report"))


def test_a_report_that_stops_leaves_the_older_one(sample: SampleRun, monkeypatch: pytest.MonkeyPatch) -> None:
    report = sample.path / "report"
    make_report(sample, report)
    before = (report / "index.html").read_bytes()
    monkeypatch.setattr("advcam_fast.pipelines.report.write_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_report(sample, report)
    assert (report / "index.html").read_bytes() == before
    assert not list(sample.path.glob(".report*"))


def test_images_that_cannot_be_shown_are_told_and_listed(sample: SampleRun) -> None:
    photos = sample.path.parent / "photos"
    (photos / "a.jpg").unlink()
    Image.new("RGB", (9, 9)).save(photos / "b" / "c d.png")
    report = sample.path / "report"
    reasons = make_report(sample, report)
    assert [reason.split(": ")[0] for reason in reasons] == ["a", "b/c d"]
    assert "this one is 9 x 9" in reasons[1]
    assert [row[0] for row in index(report)["rows"]] == ["turned"]
    assert "made of another image" in (report / "index.html").read_text()


def test_a_run_without_maps(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", {"data": "demo"}) as run:
        run.fail("a", "no image")
    sample = SampleRun(tmp_path / "run", make_run(tmp_path / "other", IMAGES[:1]).data, [])
    with pytest.raises(UsageError, match="no image of this run has maps"):
        make_report(sample, tmp_path / "report", with_masks=False)
    assert not (tmp_path / "report").exists()


def test_masks_and_metrics_are_optional(sample: SampleRun) -> None:
    report = sample.path / "report"
    make_report(sample, report, with_masks=False)
    facts, html = index(report), (report / "index.html").read_text()
    assert facts["masks"] is False and "Run refine first" in html and "Best IoU" not in html
    write_metrics(sample, {"a": 0.25, "turned": None})
    make_report(sample, report)
    facts = index(report)
    assert [row[6] for row in facts["rows"]] == [0.25, None, None] and facts["masks"] is True
    assert "Best IoU" in (report / "index.html").read_text()
    (sample.path / "metrics.json").write_text("{")
    with pytest.raises(UsageError, match=r"metrics\.json: no JSON"):
        make_report(sample, report)


def test_rows_hold_classes_flags_and_sizes_as_seen(sample: SampleRun) -> None:
    make_report(sample, sample.path / "report")
    facts = index(sample.path / "report")
    rows = {row[0]: row for row in facts["rows"]}
    assert rows["turned"][1:3] == [50, 28]  # by EXIF
    assert [facts["classes"][number] for number in rows["b/c d"][3]] == list(HOSTILE[1:3])
    assert [facts["flags"][number] for number in rows["b/c d"][5]] == ["below_threshold"]
    assert len(facts["colours"]) == 768 and max(facts["colours"]) <= 255


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_json_in_scripts_has_no_way_out(text: str) -> None:
    written = script_json([text, f"</script><!--{text}"])
    assert json.loads(written) == [text, f"</script><!--{text}"]
    assert not re.search("[<>&\u2028\u2029]", written) and written.isascii()


def test_focus() -> None:
    assert focus(torch.zeros(3, 3)) == 0
    assert focus(torch.tensor([[1.0, 0.5], [0.25, 0.25]])) == 0.5
    assert focus(torch.ones(2, 2)) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e6), st.floats(0, 1e6)), min_size=1, max_size=600),
)
def test_charts_stay_in_their_frame(curve: list[tuple[float, float]]) -> None:
    chart = line_chart("t", "x", "y", {"one": sorted(curve)}, lambda x, y: "")
    for pair in chart.lines[0].points.split():
        x, y = map(float, pair.split(","))
        assert chart.left - 1 <= x <= chart.right + 1 and chart.top - 1 <= y <= chart.bottom + 1
    assert 2 <= len(chart.x_ticks) <= 9


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        line_chart("t", "x", "y", {"one": []}, lambda x, y: "")
