"""Memory and pace stay flat however many images are labelled: 20,000 by `label`, a few hundred in `make test`."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli.command_line import FAST, save_list, save_network, save_photo

from advcam_fast.climb import ClimbConfig, MapMaker
from advcam_fast.data import open_dataset
from advcam_fast.models import load_model
from advcam_fast.pipelines.label import Labeller, LabelRule, Progress, label_dataset
from advcam_fast.store import RunFolder

SIZES = [(width, height) for width in (33, 40, 48, 64) for height in (33, 37, 50, 72)]


def many_photos(folder: Path, count: int) -> str:
    """A csv: list of `count` images: links to photos of a few sizes."""
    originals = [save_photo(folder / "originals" / f"{i}.png", i, size) for i, size in enumerate(SIZES)]
    rows = [(f"{i // 1000}/{i}.png", tag) for i, tag in zip(range(count), itertools.cycle(("cat", "dog;cat", "dog")))]
    for (image, _), original in zip(rows, itertools.cycle(originals)):
        (folder / image).parent.mkdir(exist_ok=True)
        os.link(original, folder / image)
    return save_list(folder, rows, photos=False)


def resident(process: int | str) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def photos_and_network(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    return many_photos(tmp_path / "photos", request.param), save_network(tmp_path / "net.safetensors")


@pytest.mark.parametrize("photos_and_network", [300], indirect=True)
def test_nothing_is_kept_of_an_image(photos_and_network: tuple[str, Path], tmp_path: Path) -> None:
    data, weights = photos_and_network
    dataset, model = open_dataset(data), load_model("squeezenet1_1", weights)
    maker = MapMaker(model, ClimbConfig.preset("cam").with_settings(["steps=2", "scales=1"]))
    seen: dict[int, tuple[int, int, int]] = {}

    def look(progress: Progress) -> None:
        if progress.done in (100, 290):  # at the last one the list of what is to do goes, which hides what was kept
            gc.collect()
            alive = gc.get_objects()
            tensors = sum(issubclass(type(thing), torch.Tensor) for thing in alive)
            seen[progress.done] = (tensors, len(alive), resident("self"))

    with RunFolder.open(tmp_path / "run", {}) as run:
        label_dataset(dataset, Labeller(maker, LabelRule(), {"cat": 0, "dog": 1}), run, report=look)
    assert run.counts() == {"ok": 300, "failed": 0}
    tensors, objects, memory = (after - before for before, after in zip(seen[100], seen[290], strict=True))
    assert tensors <= 2, f"{tensors} tensors more are alive after 190 images"
    assert objects < 100, f"{objects} objects more are alive after 190 images"
    assert memory < 190 * 40_000, f"{memory / 190:.0f} bytes of memory for each image"


class Watch:
    """`advcam-fast` on one thread in a process of its own, and what it held and did whenever it was looked at."""

    def __init__(self, arguments: list[object], out: Path) -> None:
        command = [sys.executable, "-m", "advcam_fast", *map(str, arguments), "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        self.manifest = out / "manifest" / "main.jsonl"
        self.written, self.memory, self.worked = [0], [0], [0.0]  # bytes of manifest, of memory; seconds

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def look(self) -> bool:
        """Whether it still runs; waits a twentieth of a second."""
        if self.process.poll() is not None:
            assert self.process.returncode == 0, self.process.stderr.read().decode() if self.process.stderr else ""
            return False
        # Seconds that processors have worked for it: its pace, whatever else the machine has to do.
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        self.written.append(self.manifest.stat().st_size if self.manifest.exists() else 0)
        self.memory.append(resident(self.process.pid))
        self.worked.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        time.sleep(0.05)
        return True

    def images(self) -> int:
        return self.manifest.read_bytes().count(b"\n") if self.manifest.exists() else 0

    def pace(self, first: int, last: int) -> float:
        """Images a second of work, between two looks."""
        written = self.manifest.read_bytes()[self.written[first] : self.written[last]]
        return written.count(b"\n") / (self.worked[last] - self.worked[first])


@pytest.mark.soak
@pytest.mark.parametrize("photos_and_network", [20_000], indirect=True)
def test_twenty_thousand_images(photos_and_network: tuple[str, Path], tmp_path: Path) -> None:
    """The pace at the end is compared with that of another run at its beginning, beside it.

    Tenths of a run that lie minutes apart differ by 10 % for the machine's own reasons.
    """
    data, weights = photos_and_network
    count = len(open_dataset(data).items)
    out = tmp_path / "run"
    label = ["label", "--data", data, "--model", "squeezenet1_1", "--weights", weights, "--json", "--preset", "cam"]
    with Watch([*label, *FAST], out) as run:
        while run.look() and (len(run.written) % 100 or run.images() < 0.8 * count):
            pass
        with Watch([*label, *FAST], tmp_path / "fresh") as fresh:
            while run.look() and fresh.look() and (len(fresh.written) % 50 or fresh.images() < 0.03 * count):
                pass  # it warms up
            start, fresh_start = len(run.written) - 1, len(fresh.written) - 1
            while run.look():
                assert fresh.look()
            end = run.written.index(run.written[-1])
            assert 0.07 < 1 - run.written[start] / run.written[end] < 0.15, "this is not the last tenth"
            paces = run.pace(start, end), fresh.pace(fresh_start, fresh_start + end - start)
    assert paces[0] >= 0.9 * paces[1], f"{paces[0] / paces[1]:.2f} of the pace at the beginning is left"

    # While images are labelled: on its way out the interpreter touches pages of its libraries.
    later = [
        memory
        for done, memory in zip(run.written, run.memory, strict=True)
        if 0.2 * run.written[-1] <= done < run.written[-1]
    ]
    assert len(later) > 100
    begin, last = max(later[: len(later) // 20]), max(later[-len(later) // 20 :])
    assert last <= 1.05 * begin, f"{begin / 2**20:.0f} MiB at a fifth of the run, {last / 2**20:.0f} MiB at its end"
    assert max(later) <= 1.05 * min(later), f"memory between {min(later)} and {max(later)} bytes"

    records = [json.loads(line) for line in run.manifest.read_bytes().splitlines()]
    assert len({record["id"] for record in records}) == len(records) == count
    labelled = RunFolder.read(out, verify=True)
    assert labelled.counts() == {"ok": count, "failed": 0}, "a file is not what its line says"
    for record in records[::97]:
        assert len(labelled.read_maps(record["id"])["strided"]) == len(record["labels"])
