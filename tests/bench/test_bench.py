"""advcam-fast bench: every row is checked before it is timed, and what is missing or wrong is said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from advcam_fast.bench import duel as duelling
from advcam_fast.bench import duels
from advcam_fast.bench.chart import comparison_of, draw, table_of
from advcam_fast.bench.duel import Duel, Scope, compared, fight, results
from advcam_fast.cli import app
from advcam_fast.cli import bench as verb

TINY = Scope("squeezenet1_1", side=64, batch=2, shrink=16, rounds=1)
MACHINE = {"cpu": "a CPU", "threads": 1, "torch": torch.__version__}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duelling, "SHORTEST", 0.0)


def made(right: bool) -> Duel:
    def check() -> None:
        if not right:
            raise AssertionError("off by one\nand more")

    return Duel("a sum", "another", "", lambda scope: (lambda: sum(range(10)), lambda: sum(range(100_000)), check))


@pytest.mark.parametrize("duel", duels.DUELS, ids=lambda duel: f"{duel.name}, {duel.against}")
def test_every_duel_is_right_and_has_times(duel: Duel) -> None:
    row = fight(duel, TINY)
    if row.reason.startswith("not installed"):
        pytest.skip(row.reason)
    assert row.reason == "" and not row.wrong
    assert row.ours > 0 and row.theirs > 0 and row.lowest <= row.ratio <= row.highest
    assert bool(row.version) == bool(duel.package)


def test_a_wrong_answer_has_no_time() -> None:
    row = fight(made(right=False), TINY)
    assert row.wrong and row.ratio == row.ours == row.theirs == 0
    assert row.reason == "no time, since the results differ: off by one"


def test_the_check_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    duel = next(duel for duel in duels.DUELS if duel.name.startswith("climb_step"))
    right = torch.ops.advcam_fast.climb_step
    monkeypatch.setattr(
        duels.ops, "climb_step", lambda image, **given: right(image, **given) + 0 * image.mul_(1.001).sum()
    )
    assert fight(duel, TINY).wrong


def test_ratio_is_theirs_over_ours() -> None:
    row = fight(made(right=True), TINY)
    assert row.ratio > 5 and row.ratio == pytest.approx(row.theirs / row.ours)


def test_what_is_not_installed_is_said() -> None:
    row = fight(Duel("a sum", "another", "no-such-package-here", lambda scope: pytest.fail("made")), TINY)
    assert row.reason == "not installed: pip install no-such-package-here" and not row.wrong


def test_table_chart_and_comparison() -> None:
    rows = [fight(made(True), TINY), fight(made(False), TINY)]
    found = results(rows, TINY, MACHINE)
    before = json.loads(json.dumps(found))
    before["rows"][0]["ratio"] = found["rows"][0]["ratio"] / 2
    table = table_of(found)
    assert "no time, since the results differ" in table and "divided by 16" in table and table.count("×") == 1
    assert compared(found, before) == [("a sum", "another", pytest.approx(rows[0].ratio / 2), rows[0].ratio, 2.0)]
    assert comparison_of(found, before).splitlines()[-1].endswith(" 2.00 |")
    picture = io.BytesIO()
    draw(found, picture)
    assert Image.open(picture).format == "PNG"


def test_the_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verb, "QUICK", TINY)
    command = ["bench", "--quick", "--only", "climb_step", "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    stored = tmp_path / "out" / "bench.json"
    assert {file.name for file in stored.parent.iterdir()} == {"bench.json", "bench.md", "bench.png"}
    again = CliRunner().invoke(app, [*command, "--compare", str(stored), "--json"])
    assert again.exit_code == 0 and json.loads(again.stdout)["rows"][0]["ratio"] > 0
    assert "now / before" in (stored.parent / "bench.md").read_text()
    monkeypatch.setattr(verb, "DUELS", (made(right=False),))
    assert CliRunner().invoke(app, ["bench", "--quick", "--out", str(tmp_path / "wrong")]).exit_code == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("[]", "no results of bench"), ('{"rows": [{}]}', "no results of bench")],
)
def test_what_cannot_be_compared(content: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    if content is not None:
        file.write_text(content)
    ended = CliRunner().invoke(app, ["bench", "--quick", "--compare", str(file), "--out", str(tmp_path / "out")])
    assert words in str(ended.exception) and "wanted is a bench.json" in str(ended.exception)
    assert not (tmp_path / "out").exists()


def test_a_row_that_is_not_there() -> None:
    ended = CliRunner().invoke(app, ["bench", "--only", "no such row"])
    assert "no row has that; there are AdvCAM of a photo" in str(ended.exception)
