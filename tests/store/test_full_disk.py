import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from advcam_fast.store import RunFolder, StoreError

SETTINGS = {"steps": 27}


def maps(size: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(0).random((1, size, size), dtype=np.float32)
    return {"classes": np.array([3]), "strided": values[:, ::4, ::4], "initial": values}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def files(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_map_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS) as run:
        run.finish("small", maps(16))
        before = files(tmp_path)
        with largest_file(20_000), pytest.raises(StoreError, match=r"large\.npz: cannot be written: File too large"):
            run.finish("large", maps(200))
        assert files(tmp_path) == before
        assert run.done_ids() == {"small"}
        run.finish("large", maps(200))
    assert RunFolder.read(tmp_path, verify=True).done_ids() == {"small", "large"}


def test_a_manifest_line_that_does_not_fit_leaves_no_half(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, SETTINGS) as run:
        run.fail("a", "x" * 500)
        before = (tmp_path / "manifest" / "main.jsonl").read_bytes()
        with largest_file(len(before) + 100), pytest.raises(StoreError, match=r"main\.jsonl: cannot be written"):
            run.fail("b", "y" * 500)
        assert (tmp_path / "manifest" / "main.jsonl").read_bytes() == before
        assert run.done_ids() == {"a"}
        run.fail("b", "y" * 500)
    assert [record.id for record in RunFolder.read(tmp_path).records()] == ["a", "b"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunFolder.open(tmp_path, SETTINGS) as run:
        before = files(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{call}", full)
            with pytest.raises(StoreError, match=r"a\.npz: cannot be written: No space left on device") as caught:
                run.finish("a", maps(16))
        assert "\n" not in str(caught.value)
        assert files(tmp_path) == before


def test_no_space_at_the_start_is_no_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run")

    monkeypatch.setattr("pathlib.Path.mkdir", full)
    with pytest.raises(StoreError, match="No space left on device"):
        RunFolder.open(tmp_path / "run", SETTINGS)


ON_A_FULL_DISK = """
import sys
from pathlib import Path
import numpy as np
from advcam_fast.store import RunFolder, StoreError
path = Path(sys.argv[1])
values = np.random.default_rng(0).random((1, 128, 128), dtype=np.float32)
maps = {"classes": np.array([3]), "strided": values[:, ::4, ::4], "initial": values}
finished = []
run = RunFolder.open(path / "run", {})
try:
    for i in range(1000):
        run.finish(f"item {i}", maps)
        finished.append(f"item {i}")
except StoreError as error:
    assert "No space left on device" in str(error), error
else:
    raise AssertionError("the disk did not fill")
run.close()
(path / "run" / run.file_path(finished.pop(0)).relative_to(path / "run")).unlink()
with RunFolder.open(path / "run", {}, verify=True) as run:
    assert run.done_ids() == set(finished), (run.done_ids(), finished)
    assert len(list((path / "run" / "maps").rglob("*.npz"))) == len(finished)
    run.finish("item 0", maps)
print(len(finished))
"""


def test_a_disk_that_really_is_full(tmp_path: Path) -> None:
    script = tmp_path / "fill.py"
    script.write_text(ON_A_FULL_DISK)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=512k tmpfs '{disk}'"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = f"{mount} && '{sys.executable}' '{script}' '{disk}'"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5
