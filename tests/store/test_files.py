from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advcam_fast.store import StoreError
from advcam_fast.store.files import file_name, write_whole

# parts that a careless encoding would let clash, escape or hide
PARTS = st.one_of(
    st.sampled_from(["", ".", "..", "a", "A.npz", "a.npz", "a%2Enpz", "%", "%25", "~", ".npz", "x" * 300, "é" * 90]),
    st.text(max_size=8),
    st.text(alphabet="a.%~/", max_size=6),
)
IDS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


def parts_of(name: str) -> list[str]:
    return f"{name}.npz".split("/")


@settings(deadline=None, derandomize=True, max_examples=400)
@given(IDS)
def test_names_stay_in_the_folder_and_fit_a_file_system(item_id: str) -> None:
    name = file_name(item_id)
    assert name.isascii() and name.isprintable() and len(name) <= 1000
    for part in parts_of(name):
        assert part and not part.startswith(".") and len(part) <= 255
    assert not any(part.endswith(".npz") for part in parts_of(name)[:-1])


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.lists(IDS, unique=True, min_size=2, max_size=12))
def test_different_ids_have_different_names(ids: list[str]) -> None:
    assert len({file_name(item_id) for item_id in ids}) == len(ids)


@pytest.mark.parametrize(
    ("item_id", "name"),
    [
        ("2007_000032", "2007_000032"),
        ("images/horse-001.v2", "images/horse-001.v2"),
        ("a b", "a%20b"),
        ("../../etc/passwd", "%2E./%2E./etc/passwd"),
        ("/abs", "%/abs"),
        ("", "%"),
        ('it\'s "q"', "it%27s%20%22q%22"),
        ("猫", "%E7%8C%AB"),
        ("a.npz/b", "a%2Enpz/b"),
        ("bad\udcff", "bad%ED%B3%BF"),
    ],
)
def test_names_are_readable(item_id: str, name: str) -> None:
    assert file_name(item_id) == name


def test_long_ids_that_share_their_beginning_differ() -> None:
    first, second = file_name("x" * 5000 + "1"), file_name("x" * 5000 + "2")
    assert first != second and len(first) < 200
    deep = [file_name("/".join(["folder"] * 400 + [end])) for end in "12"]
    assert deep[0] != deep[1] and len(deep[0]) < 200


def test_no_id_can_take_the_name_of_a_long_one() -> None:
    name = file_name("x" * 300)
    assert "~" in name and file_name(name) != name


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, temporary = tmp_path / "deep" / "er" / "a.bin", tmp_path / "temporary"
    write_whole(target, b"old", temporary)
    assert target.read_bytes() == b"old" and not temporary.exists()

    def interrupted(descriptor: int) -> None:
        assert target.read_bytes() == b"old" and temporary.read_bytes() == b"new"
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, b"new", temporary)
    assert target.read_bytes() == b"old" and not temporary.exists()


def test_a_failure_names_the_file_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/a: cannot be written: File exists"):
        write_whole(tmp_path / "file" / "a", b"", tmp_path / "temporary")
