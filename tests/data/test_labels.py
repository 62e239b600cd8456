from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advcam_fast.data import match_labels
from advcam_fast.errors import UsageError

HEAD = (
    "tench, Tinca tinca",
    "sorrel",
    "crane",
    "potted plant",
    "crane, Grus",
    "Egyptian_cat",
    "maillot",
    "maillot, suit",
)


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("sorrel", 1),
        ("Sorrel", 1),
        ("potted_plant", 3),
        ("POTTED  plant", 3),
        ("Egyptian cat", 5),
        ("tinca tinca", 0),
        ("Tench", 0),
        ("tench,Tinca Tinca", 0),
        ("crane", 2),
        ("grus", 4),
        ("maillot", 6),
        ("suit", 7),
        ("0", 0),
        ("7", 7),
    ],
)
def test_a_label_finds_its_class(label: str, index: int) -> None:
    assert match_labels([label], HEAD) == {label: index}


def test_an_exact_name_wins_over_an_index() -> None:
    assert match_labels(["2", "1"], ["0", "2", "x"]) == {"2": 1, "1": 1}


def test_a_label_that_fits_several_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="'Crane, other' fits the model's head's classes 2, 4 alike"):
        match_labels(["Crane, other"], HEAD)
    with pytest.raises(UsageError, match="classes 0, 2 alike"):
        match_labels(["crane"], ["crane", "x", "crane"])


@pytest.mark.parametrize("index", ["8", "1000", "-1"])
def test_an_index_outside_the_head_is_refused(index: str) -> None:
    with pytest.raises(UsageError, match=f"class index {index} is outside the model's head: 8 classes, counted from 0"):
        match_labels(["sorrel", index], HEAD)


def test_every_unmatched_name_is_listed_with_close_ones() -> None:
    with pytest.raises(UsageError) as caught:
        match_labels(["sorel", "sorrel", "zzz", "tenche"], HEAD)
    message = str(caught.value)
    assert message.startswith("3 of the data's labels match no class of the model: ")
    assert "'sorel' (close: 'sorrel')" in message and "'zzz'," in message
    assert "'tenche' (close: 'tench, Tinca tinca')" in message
    assert "--class-map" in message and "\n" not in message


def test_many_unmatched_names_are_all_listed() -> None:
    names = [f"thing {i}" for i in range(300)]
    with pytest.raises(UsageError) as caught:
        match_labels(names, HEAD)
    assert all(f"'{name}'" in str(caught.value) for name in names)


def write_map(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "map.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_class_map_overrides_by_name_and_index(tmp_path: Path) -> None:
    path = write_map(
        tmp_path, '\ufeffdataset,model\r\nhorse,sorrel\r\nsorrel,3\r\nfish,"tench, Tinca tinca"\r\nunused,0\r\n'
    )
    mapping = match_labels(["horse", "sorrel", "fish", "grus"], HEAD, path)
    assert {name: mapping[name] for name in ("horse", "sorrel", "fish", "grus")} == {
        "horse": 1,
        "sorrel": 3,
        "fish": 0,
        "grus": 4,
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b,c\n", "line 1: wanted two columns"),
        ("a,sorrel\nb,\n", "line 2: wanted two columns"),
        ("a,sorel\n", r"line 1: no class of the model is called 'sorel' \(close: 'sorrel'\)"),
        ("a,99\n", "class index 99 is outside the model's head: 8 classes"),
        ("a,1\na,2\n", "line 2: 'a' is mapped to classes 1 and 2"),
        ('a,"1\n', "line 1: unexpected end of data"),
    ],
)
def test_a_wrong_class_map_is_refused_by_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        match_labels([], HEAD, write_map(tmp_path, text))


def test_a_missing_class_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        match_labels([], HEAD, tmp_path / "none.csv")


@settings(deadline=None, derandomize=True)
@given(st.lists(st.text(min_size=1), unique=True, min_size=1))
def test_a_models_own_names_map_to_themselves(names: list[str]) -> None:
    assert match_labels(names, names) == {name: i for i, name in enumerate(names)}
