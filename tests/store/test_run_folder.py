import json
import os
import re
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from advcam_fast.errors import UsageError
from advcam_fast.store import RunFolder, StoreError

SETTINGS = {"data": "folder:photos", "climb": {"steps": 27, "steps_at_scale": {0.5: 13}}}


def maps(seed: int = 0, size: int = 12) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).random((2, size, size), dtype=np.float32)
    return {"classes": np.array([3, 5]), "strided": values[:, ::4, ::4], "initial": values}


def start(path: Path, *ids: str) -> None:
    with RunFolder.open(path, SETTINGS) as run:
        for i, item_id in enumerate(ids):
            run.finish(item_id, maps(i))


def manifest(path: Path) -> Path:
    return path / "manifest" / "main.jsonl"


def contents(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def test_a_run_is_written_read_and_resumed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with RunFolder.open(path, SETTINGS, info={"version": "0.1"}) as run:
        assert run.done_ids() == frozenset() and run.counts() == {"ok": 0, "failed": 0}
        run.finish("a/1", maps(1), flags=["no_positive_score:3"], labels=["cat", "dog"])
        run.fail("b", "truncated\n  file", labels=["cat"])
        assert run.done_ids() == {"a/1", "b"} and run.counts() == {"ok": 1, "failed": 1}
        assert np.abs(run.read_maps("a/1")["initial"].numpy() - maps(1)["initial"]).max() < 1e-3
    assert contents(path) == {
        ".lock",
        "run.toml",
        "manifest/main.jsonl",
        "manifest/main.lock",
        "maps/a/1.npz",
    }
    read = RunFolder.read(path)
    assert read.settings == {
        "data": "folder:photos",
        "store": "fp16",
        "climb": {"steps": 27, "steps_at_scale": {"0.5": 13}},
    }
    assert read.info == {"version": "0.1"}
    ok, failed = read.records()
    assert (ok.id, ok.status, ok.flags, ok.labels) == ("a/1", "ok", ("no_positive_score:3",), ("cat", "dog"))
    assert ok.size == (path / "maps/a/1.npz").stat().st_size and len(ok.sha256) == 64 and ok.time > 1.7e9
    assert (failed.id, failed.status, failed.reason, failed.labels) == ("b", "failed", "truncated file", ("cat",))
    with RunFolder.open(path, SETTINGS, info={"version": "0.2"}, verify=True) as run:
        assert run.done_ids() == {"a/1", "b"}
        assert run.info == {"version": "0.1"}


@pytest.mark.parametrize("store", ["fp16", "fp32", "uint8"])
def test_the_store_dtype_is_a_setting(tmp_path: Path, store: str) -> None:
    with RunFolder.open(tmp_path, SETTINGS, store=store) as run:
        run.finish("a", maps())
    with np.load(tmp_path / "maps" / "a.npz", allow_pickle=False) as file:
        assert file["initial"].dtype == {"fp16": np.float16, "fp32": np.float32, "uint8": np.uint8}[store]
    other = "fp32" if store == "uint8" else "uint8"
    with pytest.raises(UsageError, match=f'store: "{store}" -> "{other}"'):
        RunFolder.open(tmp_path, SETTINGS, store=other)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="store 'fp8', wanted fp16, fp32, uint8"):
        RunFolder.open(tmp_path, SETTINGS, store="fp8")
    with pytest.raises(UsageError, match=r"part '\.\./x', wanted letters"):
        RunFolder.open(tmp_path, SETTINGS, part="../x")
    with pytest.raises(ValueError, match="'info'"):
        RunFolder.open(tmp_path, {"info": {}})
    assert not list(tmp_path.iterdir())


def test_changed_settings_are_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    start(tmp_path, "a")
    before = {name: (tmp_path / name).read_bytes() for name in contents(tmp_path)}
    changed = {"data": "folder:photos", "climb": {"steps": 10, "steps_at_scale": {0.5: 13}}, "flip": False}
    for _ in range(2):
        with pytest.raises(UsageError, match=r"\(climb.steps: 27 -> 10; flip: absent -> false\)"):
            RunFolder.open(tmp_path, changed)
    assert {name: (tmp_path / name).read_bytes() for name in contents(tmp_path)} == before
    with RunFolder.open(tmp_path, SETTINGS) as run:
        assert run.done_ids() == {"a"}


def test_resume_can_be_forbidden(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS, resume=False):
        pass
    with pytest.raises(UsageError, match="already holds a run: resume it or choose another folder"):
        RunFolder.open(tmp_path, SETTINGS, resume=False)


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UsageError, match=r"is no run folder and not empty \(it holds 'thesis.doc'\)"):
        RunFolder.open(tmp_path, SETTINGS)
    assert (tmp_path / "thesis.doc").exists() and not (tmp_path / "run.toml").exists()
    with pytest.raises(UsageError, match="is no run folder"):
        RunFolder.read(tmp_path)


def test_a_start_that_was_killed_before_its_settings_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.toml.tmp").write_text("half")
    start(tmp_path, "a")
    assert contents(tmp_path) == {".lock", "run.toml", "manifest/main.jsonl", "manifest/main.lock", "maps/a.npz"}


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"no run can be written here: .*(File exists|Not a directory)"):
            RunFolder.open(path, SETTINGS)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "run/.lock")

    monkeypatch.setattr("os.open", forbidden)
    with pytest.raises(UsageError, match=r"no run can be written here: run/\.lock: Permission denied"):
        RunFolder.open(tmp_path / "run", SETTINGS)


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    start(tmp_path / "run", "a")
    (tmp_path / "run").chmod(0o555)
    (tmp_path / "run" / "maps").chmod(0o555)
    if os.access(tmp_path / "run", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(UsageError, match="Permission denied"):
        RunFolder.open(tmp_path / "run", SETTINGS)
    assert RunFolder.read(tmp_path / "run").done_ids() == {"a"}


def test_two_writers_of_one_part_are_refused_and_two_parts_are_not(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS) as run:
        with pytest.raises(UsageError, match=r"another process is writing here \(it holds main.lock\)"):
            RunFolder.open(tmp_path, SETTINGS)
        run.finish("a", maps())
        with RunFolder.open(tmp_path, SETTINGS, part="worker-1") as second:
            assert second.done_ids() == {"a"}
            second.finish("b", maps(1))
            run.finish("c", maps(2))
        assert RunFolder.read(tmp_path).counts() == {"ok": 3, "failed": 0}
    with RunFolder.open(tmp_path, SETTINGS, verify=True) as run:
        assert run.done_ids() == {"a", "b", "c"}
    assert sorted(record.id for record in run.records()) == ["a", "b", "c"]


def test_a_failed_start_releases_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path, "a")
    with monkeypatch.context() as patch:
        patch.setattr("advcam_fast.store.item_folder.read_records", lambda file: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            RunFolder.open(tmp_path, SETTINGS)
        patch.setattr("advcam_fast.store.item_folder.ManifestPart", lambda file: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            RunFolder.open(tmp_path, SETTINGS)
    start(tmp_path, "b")


def test_reading_takes_no_lock_and_cannot_write(tmp_path: Path) -> None:
    start(tmp_path, "a")
    run = RunFolder.read(tmp_path)
    with RunFolder.open(tmp_path, SETTINGS):
        pass
    with pytest.raises(RuntimeError, match="not open for writing"):
        run.finish("b", maps())
    with pytest.raises(RuntimeError, match="not open for writing"):
        run.fail("b", "reason")


def test_maps_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    start(tmp_path, "a")
    with RunFolder.open(tmp_path, SETTINGS) as run:
        run.fail("b", "broken")
        with pytest.raises(StoreError, match="'b' has no file: failed"):
            run.read_maps("b")
        with pytest.raises(StoreError, match="'c' has no file: not done"):
            run.read_maps("c")
        run.file_path("a").write_bytes(b"damaged")
        with pytest.raises(StoreError, match="not a whole map file"):
            run.read_maps("a")


@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_an_item_without_its_whole_file_is_not_done(tmp_path: Path, damage: str) -> None:
    start(tmp_path, "a", "b")
    path = tmp_path / "maps" / "a.npz"
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[:-1] if damage == "short" else b"")
    looked_at = RunFolder.read(tmp_path)  # who cannot do it again is told
    assert looked_at.done_ids() == {"b"} and looked_at.counts() == {"ok": 1, "failed": 1}
    assert [(record.id, record.status, record.reason) for record in looked_at.records()] == [
        ("a", "failed", "its file is not whole"),
        ("b", "ok", ""),
    ]
    with pytest.raises(StoreError, match="'a' has no file: its file is not whole"):
        looked_at.read_maps("a")
    with RunFolder.open(tmp_path, SETTINGS) as run:
        assert run.done_ids() == {"b"} and run.counts() == {"ok": 1, "failed": 0}
        assert [record.id for record in run.records()] == ["b"]
        run.finish("a", maps(7))
        assert run.done_ids() == {"a", "b"}
    looked_at.reload(verify=True)
    assert looked_at.done_ids() == {"a", "b"} and looked_at.counts() == {"ok": 2, "failed": 0}
    assert [record.id for record in looked_at.records()] == ["b", "a"]


def test_a_changed_byte_is_found_by_verify_only(tmp_path: Path) -> None:
    start(tmp_path, "a")
    path = tmp_path / "maps" / "a.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert RunFolder.read(tmp_path).done_ids() == {"a"}
    assert RunFolder.read(tmp_path, verify=True).done_ids() == frozenset()


def test_failed_items_are_retried_only_when_asked(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS) as run:
        run.fail("a", "first")
        run.fail("b", "first")
    with RunFolder.open(tmp_path, SETTINGS) as run:
        assert run.done_ids() == {"a", "b"}
    with RunFolder.open(tmp_path, SETTINGS, retry_failed=True) as run:
        assert run.done_ids() == frozenset() and run.counts() == {"ok": 0, "failed": 2}
        run.finish("a", maps())
        run.fail("b", "second")
        assert run.done_ids() == {"a", "b"} and run.counts() == {"ok": 1, "failed": 1}
    run = RunFolder.read(tmp_path)
    assert {record.id: (record.status, record.reason) for record in run.records()} == {
        "a": ("ok", ""),
        "b": ("failed", "second"),
    }
    (tmp_path / "maps" / "a.npz").unlink()
    assert RunFolder.read(tmp_path).done_ids() == {"b"}, "an old failure does not stand for a lost file"


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    start(tmp_path, "a", "b")
    whole = manifest(tmp_path).read_bytes()
    manifest(tmp_path).write_bytes(whole[:-cut])
    assert RunFolder.read(tmp_path).done_ids() == {"a"}
    assert manifest(tmp_path).read_bytes() == whole[:-cut], "a reader changes nothing"
    with RunFolder.open(tmp_path, SETTINGS) as run:
        assert run.done_ids() == {"a"}
        run.finish("b", maps(1))
    assert [json.loads(line)["id"] for line in manifest(tmp_path).read_text().splitlines()] == ["a", "b"]


def test_a_manifest_of_one_half_line_longer_than_a_block(tmp_path: Path) -> None:
    start(tmp_path)
    manifest(tmp_path).write_bytes(b'{"id": "' + b"x" * 200_000)
    with RunFolder.open(tmp_path, SETTINGS) as run:
        assert manifest(tmp_path).stat().st_size == 0
        run.fail("y" * 200_000, "long")
        run.fail("b", "short")
    with open(manifest(tmp_path), "ab") as file:
        file.write(b"x" * 100_000)
    with RunFolder.open(tmp_path, SETTINGS) as run:
        assert run.done_ids() == {"y" * 200_000, "b"}
        run.fail("c", "after")
    assert [record.id[:1] for record in RunFolder.read(tmp_path).records()] == ["y", "b", "c"]


def test_damaged_lines_are_left_out_with_a_warning(tmp_path: Path) -> None:
    start(tmp_path, "a", "b")
    first, second = manifest(tmp_path).read_bytes().splitlines(keepends=True)
    no_records = [b"\0\0\0\n", b"{}\n", b"[]\n", b"7\n", first.replace(b'"ok"', b'"odd"'), first.replace(b'"a"', b"1")]
    manifest(tmp_path).write_bytes(b"".join([first, *no_records, b"\xff\n", second]))
    with pytest.warns(UserWarning, match="main.jsonl: 7 damaged lines left out"):
        run = RunFolder.read(tmp_path)
    assert run.done_ids() == {"a", "b"}


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    start(tmp_path, "a")
    leftover = tmp_path / "maps" / ".tmp-main" / "123-456"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    with RunFolder.open(tmp_path, SETTINGS):
        assert not leftover.exists()


@pytest.mark.parametrize(
    "item_id",
    [
        "a b/c d",
        "../../escape",
        "/abs",
        "猫/ü 'q' \"p\"",
        "x" * 300,
        "d/" * 50 + "e" * 251,
        "new\nline",
        "a\0b",
        "a\udcff",
        "",
    ],
)
def test_odd_ids_are_stored_inside_and_come_back(tmp_path: Path, item_id: str) -> None:
    path = tmp_path / "run"
    start(path, item_id, "plain")
    with RunFolder.open(path, SETTINGS, verify=True) as run:
        assert run.done_ids() == {item_id, "plain"}
        assert [record.id for record in run.records()] == [item_id, "plain"]
        run.read_maps(item_id)
        assert run.file_path(item_id).resolve().is_relative_to((path / "maps").resolve())
    assert [child.name for child in tmp_path.iterdir()] == ["run"]
    assert len(manifest(path).read_bytes().splitlines()) == 2


def test_ids_that_could_share_a_file_do_not(tmp_path: Path) -> None:
    ids = ["a", "a/b", "a.npz", "a.npz/b", "a%20b", "a b", "x" * 300, "x" * 299 + "y"]
    start(tmp_path, *ids)
    run = RunFolder.read(tmp_path, verify=True)
    assert run.done_ids() == set(ids)
    for i, item_id in enumerate(ids):
        assert np.abs(run.read_maps(item_id)["initial"].numpy() - maps(i)["initial"]).max() < 1e-3


def test_wrong_maps_leave_nothing(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS) as run:
        with pytest.raises(ValueError, match="wanted 0 to 1"):
            run.finish("a", {**maps(), "initial": np.full((2, 3, 3), np.nan)})
        assert run.done_ids() == frozenset()
    assert not list((tmp_path / "maps").iterdir()) and manifest(tmp_path).read_bytes() == b""


def test_several_threads_may_finish_items(tmp_path: Path) -> None:
    ids = [f"{i % 5}/{i}" for i in range(120)]
    with RunFolder.open(tmp_path, SETTINGS) as run, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: run.finish(ids[i], maps(i)), range(120)))
    run = RunFolder.read(tmp_path, verify=True)
    assert run.done_ids() == set(ids) and len(list(run.records())) == 120
    for i in range(0, 120, 17):
        assert np.abs(run.read_maps(ids[i])["initial"].numpy() - maps(i)["initial"]).max() < 1e-3


def test_threads_never_mix_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def short_write(descriptor: int, line: bytes) -> int:
        time.sleep(0.001)
        return write(descriptor, line[: max(1, len(line) // 2)])

    with RunFolder.open(tmp_path, SETTINGS) as run, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr("os.write", short_write)
        list(pool.map(lambda i: run.fail(f"item {i}", "reason"), range(20)))
    assert {json.loads(line)["id"] for line in manifest(tmp_path).read_text().splitlines()} == run.done_ids()


def test_only_ids_are_kept_in_memory(tmp_path: Path) -> None:
    start(tmp_path)
    line = {"status": "failed", "time": 1.0, "reason": "r" * 400, "flags": [], "labels": [], "sha256": "", "size": 0}
    with open(manifest(tmp_path), "w") as file:
        file.writelines(json.dumps({"id": f"images/{i:06}", **line}) + "\n" for i in range(20_000))
    tracemalloc.start()
    run = RunFolder.read(tmp_path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(run.done_ids()) == 20_000
    assert held < 20_000 * 250


def test_the_manifest_is_json_lines(tmp_path: Path) -> None:
    start(tmp_path, "a")
    line = json.loads(manifest(tmp_path).read_text())
    assert set(line) == {"id", "status", "time", "reason", "flags", "labels", "sha256", "size"}
    assert re.fullmatch("[0-9a-f]{64}", line["sha256"])
