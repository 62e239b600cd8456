import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advcam_fast.errors import UsageError
from advcam_fast.store.settings import check_unchanged, plain_settings, read_run_toml, to_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.one_of(TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=12,
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.dictionaries(TEXT, VALUES, max_size=6))
def test_settings_survive_toml(table: dict[str, object]) -> None:
    assert plain_settings(table) == table
    assert tomllib.loads(to_toml(table)) == table


def test_what_toml_lacks_is_made_plain() -> None:
    table = {"steps_at_scale": {0.5: 13}, "scales": (0.5, 1.0), "weights": Path("a/b"), "seed": None, "tiny": 1e-5}
    plain = {"steps_at_scale": {"0.5": 13}, "scales": [0.5, 1.0], "weights": "a/b", "tiny": 1e-5}
    assert plain_settings(table) == plain
    assert tomllib.loads(to_toml(plain)) == plain


def test_toml_is_pleasant_to_read() -> None:
    text = to_toml({"steps": 27, "flip": True, "climb": {"scales": [0.5, 1.0], "at": {"0.5": 13}}, "name": "a"})
    lines = 'steps = 27\nflip = true\nname = "a"\n\n[climb]\nscales = [0.5, 1.0]\n\n[climb.at]\n"0.5" = 13\n'
    assert text == lines


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), object(), b"bytes", "lone \udc80", [1, {2}], {"deep": [set()]}]
)
def test_what_toml_cannot_hold_is_refused(bad: object) -> None:
    with pytest.raises(
        UsageError, match=r"setting (key|deep): .*, wanted Unicode text, a finite number, a list or a table"
    ):
        plain_settings({"key": bad})


def test_changes_are_named_one_by_one(tmp_path: Path) -> None:
    old = {"data": "folder:a", "same": 1, "climb": {"steps": 27, "scales": [1.0]}, "gone": True}
    new = {"data": "folder:b", "same": 1.0, "climb": {"steps": 10, "scales": [1.0]}, "added": 2}
    check_unchanged(tmp_path / "run.toml", old, {**old})
    with pytest.raises(UsageError) as caught:
        check_unchanged(tmp_path / "run.toml", old, new)
    changes = 'data: "folder:a" -> "folder:b"; climb.steps: 27 -> 10; gone: true -> absent; added: absent -> 2'
    assert f"({changes})" in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_run_toml_that_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run folder: run\.toml: No such file"):
        read_run_toml(tmp_path / "run.toml")
    for content in (b"steps = ", b"\xff"):
        (tmp_path / "run.toml").write_bytes(content)
        with pytest.raises(UsageError, match=r"run\.toml: ") as caught:
            read_run_toml(tmp_path / "run.toml")
        assert "\n" not in str(caught.value)
