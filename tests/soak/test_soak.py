"""Memory and pace stay flat however many images are labelled: 20,000 by `label`, a few hundred in `make test`."""

import gc
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
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


def worked(process: int) -> float:
    """Seconds that processors have worked for a process: its pace, whatever else the machine has to do."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watched(arguments: list[object], out: Path) -> Iterator[tuple[int, int, float]]:
    """Runs `advcam-fast` to its end; yields (bytes of manifest, of memory, seconds worked) twenty times a second."""
    manifest = out / "manifest" / "main.jsonl"
    command = [sys.executable, "-m", "advcam_fast", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process:
        while process.poll() is None:
            if manifest.exists():
                yield manifest.stat().st_size, resident(process.pid), worked(process.pid)
            time.sleep(0.05)
        assert process.returncode == 0, process.stderr.read().decode() if process.stderr else ""


@pytest.mark.soak
@pytest.mark.parametrize("photos_and_network", [20_000], indirect=True)
def test_twenty_thousand_images(photos_and_network: tuple[str, Path], tmp_path: Path) -> None:
    data, weights = photos_and_network
    count = len(open_dataset(data).items)
    out = tmp_path / "run"
    given = ("--data", data, "--model", "squeezenet1_1", "--weights", weights, "--out", out, "--json")
    one_step = ("--preset", "cam", *FAST)
    samples = [sample for sample in watched(["label", *given, *one_step], out) if sample[1]]
    lines = (out / "manifest" / "main.jsonl").read_bytes()
    # While images are labelled: on its way out the interpreter touches pages of its libraries.
    later = [memory for done, memory, _ in samples if 0.2 * len(lines) <= done < len(lines)]
    assert len(later) > 100
    begin, end = max(later[: len(later) // 20]), max(later[-len(later) // 20 :])
    assert end <= 1.05 * begin, f"{begin / 2**20:.0f} MiB at a fifth of the run, {end / 2**20:.0f} MiB at its end"
    assert max(later) <= 1.05 * min(later), f"memory between {min(later)} and {max(later)} bytes"

    records = [json.loads(line) for line in lines.splitlines()]
    assert len({record["id"] for record in records}) == len(records) == count
    paces = []
    for start in (0.05, 0.9):  # of the run; what came before is warming up
        tenth = [(done, seconds) for done, _, seconds in samples if start <= done / len(lines) < start + 0.1]
        (done_first, begin_work), (done_last, end_work) = tenth[0], tenth[-1]
        paces.append((done_last - done_first) / (end_work - begin_work))
    assert paces[1] >= 0.9 * paces[0], f"{paces[1] / paces[0]:.2f} of the pace at the beginning is left"

    run = RunFolder.read(out, verify=True)
    assert run.counts() == {"ok": count, "failed": 0}, "a file is not what its line says"
    for record in records[::97]:
        assert len(run.read_maps(record["id"])["strided"]) == len(record["labels"])
