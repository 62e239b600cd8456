"""label --engine ray: the same files, whatever becomes of the workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import FAST, Command, Ended, map_files, save_list, save_photo, timeless

pytest.importorskip("ray", reason="ray is not installed: the extra [scale]")

COUNT = 40


@pytest.fixture(scope="module")
def options(network: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    folder = tmp_path_factory.mktemp("photos")
    rows = [(f"{i % 3}/{i}.png", "dog;cat" if i % 2 else "dog") for i in range(COUNT)]
    for i, (image, _) in enumerate(rows[:-1]):
        save_photo(folder / image, i, (33 + i % 9, 40))
    data = save_list(folder, rows, photos=False)
    return ("label", "--data", data, "--model", "squeezenet1_1", "--weights", network, "--preset", "cam", *FAST)


@pytest.fixture(scope="module")
def alone(options: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert Command(*options, "--out", out / "run", folder=out / "printed").end().code == 3
    return out / "run"


def on_ray(options: tuple[object, ...], out: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "advcam_fast", *map(str, options), "--out", str(out), "--engine", "ray", *more]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: "subprocess.Popen[str]") -> Ended:
    out, err = process.communicate(timeout=200)
    return Ended(process.returncode, out, err)


def workers_of(process: int) -> list[int]:
    """The processes of actors, found by their names among all that descend from one."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except (OSError, IndexError):
            continue
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(child for child in found if names[child].startswith("ray::MapWorker"))


def test_two_workers_of_which_one_is_killed_write_what_one_process_does(
    options: tuple[object, ...], alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = on_ray(options, out, "--workers", "2", "--json")
    manifest = out / "manifest" / "main.jsonl"
    end = time.monotonic() + 150
    while process.poll() is None and not (manifest.exists() and manifest.read_bytes().count(b"\n") > 3):
        assert time.monotonic() < end
        time.sleep(0.005)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert manifest.read_bytes().count(b"\n") < COUNT, "the kill came too late to mean anything"
    left = ended(process)
    assert left.code == 3, left.err
    assert (left.json()["ok"], left.json()["failed"], left.json()["done_now"]) == (COUNT - 1, 1, COUNT)
    assert "Traceback" not in left.err
    assert map_files(out) == map_files(alone)
    assert timeless(out) == timeless(alone)


def test_an_image_that_takes_its_worker_with_it_is_recorded(
    options: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sitecustomize of the workers ends the process where a certain file is opened."""
    poison = (
        "import os, sys\n"
        "def look(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('/2/5.png'):\n"
        "        os._exit(1)\n"
        "sys.addaudithook(look)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(poison)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    data = Path(str(options[2]).removeprefix("csv:")).parent / "few.csv"
    data.write_text("image,labels\n0/3.png,dog\n2/5.png,dog\n0/6.png,dog\n")
    left = ended(on_ray(("label", "--data", f"csv:{data}", *options[3:]), tmp_path / "run", "--workers", "1", "--json"))
    assert left.code == 3, left.err
    assert left.json()["failures"] == [{"id": "2/5", "reason": "the Ray worker that had it was lost, 4 times"}]
    assert left.json()["ok"] == 2


def test_more_workers_than_there_is_room_for_are_refused(options: tuple[object, ...], tmp_path: Path) -> None:
    left = ended(on_ray(options, tmp_path / "run", "--workers", "9999"))
    assert left.code == 2
    assert "--workers 9999: the cluster has " in left.error
