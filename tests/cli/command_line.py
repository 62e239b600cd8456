"""The real command line in processes of its own, forked from one that has done the imports; and small data for it."""

import contextlib
import csv
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from advcam_fast.models import load_model

CLASSES = ("cat", "dog", 'tricky, "quoted"/slashed 🐈', "[bold]:cat:", "never")
NEVER = 4  # its head row is negative, so no position ever scores
FAST = ("--set", "steps=2", "--set", "scales=1")

_server = get_context("forkserver")
_server.set_forkserver_preload(["advcam_fast.cli", "advcam_fast.models.timm_nets", "command_line"])


@dataclass(frozen=True)
class Ended:
    """How a command ended: a signal's number is negative."""

    code: int | None
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that an error is."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and self.err.rstrip("\n").endswith(lines[0]), self.err
        return lines[0]


class Command:
    """A started command; arguments may be paths.

    For its process only: `limits` of resources, `powerless` root, nobody `listening` to what it prints, and more
    variables of its `environment`.
    """

    def __init__(
        self,
        *arguments: object,
        folder: Path,
        limits: Mapping[int, int] | None = None,
        powerless: bool = False,
        listening: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = (folder / f"{time.monotonic_ns()}.out", folder / f"{time.monotonic_ns()}.err")
        texts = [str(argument) for argument in arguments]
        self.process = _server.Process(
            target=_child,
            args=(texts, self._files, dict(limits or {}), powerless, listening, dict(environment or {})),
        )
        self.process.start()

    def send(self, signal: int) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal)

    def end(self, timeout: float = 60) -> Ended:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"the command did not end: {self._files[1].read_text()}")
        texts = [file.read_text() if file.exists() else "" for file in self._files]
        return Ended(self.process.exitcode, *texts)


def _child(
    arguments: list[str],
    files: tuple[Path, Path],
    limits: dict[int, int],
    powerless: bool,
    listening: bool,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    for number, file in enumerate(files, start=1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    if not listening:
        end, pipe = os.pipe()
        os.close(end)
        os.dup2(pipe, 1)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    if powerless:  # root without its capabilities is held by permissions like anybody else
        header, nothing = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)
        assert ctypes.CDLL(None).capset(header, nothing) == 0
    for what, most in limits.items():
        resource.setrlimit(what, (most, most))
    from advcam_fast.cli import main

    sys.argv = ["advcam-fast", *arguments]
    main()


def start_ranks(count: int, *arguments: object, folder: Path) -> list[Command]:
    """The command as `torchrun --nproc-per-node COUNT` starts it, without what torchrun does when one of them ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    return [
        Command(
            *arguments,
            folder=folder / f"rank{rank}",
            environment={**shared, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def save_network(file: Path, spoil: Callable[[dict[str, torch.Tensor]], None] | None = None) -> Path:
    """A SqueezeNet of random weights whose classes score somewhere in nearly every picture, all but the last."""
    torch.manual_seed(0)
    model = load_model("squeezenet1_1", weights="none", num_classes=len(CLASSES))
    tensors = dict(model.features.state_dict())
    head = 0.02 * (0.5 + torch.randn(len(CLASSES), model.class_weights.shape[1]))
    head[NEVER] = -head[NEVER].abs()
    tensors |= {"classifier.1.weight": head[..., None, None], "classifier.1.bias": torch.zeros(len(CLASSES))}
    if spoil:
        spoil(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, {"class_names": json.dumps(CLASSES)})
    return file


def save_photo(file: Path, seed: int, size: tuple[int, int] = (40, 33)) -> Path:
    """A smooth random picture of (width, height)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file)
    return file


def save_list(folder: Path, rows: Sequence[tuple[str, str]], photos: bool = True) -> str:
    """A csv: SPEC of images and their labels, with a photo for each unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "labels"), *rows])
    for seed, (image, _) in enumerate(rows):
        if photos and not (folder / image).exists():
            save_photo(folder / image, seed, (33 + seed % 9, 40 - seed % 5))
    return f"csv:{folder / 'labels.csv'}"


def manifest(run: Path) -> dict[str, dict[str, Any]]:
    """The lines of all parts of the manifest by id, read without the code under test; an id twice is an error.

    A last line that a kill cut off does not count: a part is repaired only by the process that writes it next.
    """
    parts = sorted((run / "manifest").glob("*.jsonl"))
    records = [json.loads(line) for part in parts for line in part.read_bytes().split(b"\n")[:-1]]
    by_id = {record["id"]: record for record in records}
    assert len(by_id) == len(records), "an item was done twice"
    return by_id


def timeless(run: Path) -> list[dict[str, Any]]:
    """The manifest, sorted by id and without times."""
    return [
        {key: value for key, value in record.items() if key != "time"} for _, record in sorted(manifest(run).items())
    ]


def finished(run: Path) -> dict[str, int]:
    """Names and times of the map files whose manifest line is whole; others may be written again."""
    parts = [part.read_bytes().split(b"\n")[:-1] for part in (run / "manifest").glob("*.jsonl")]
    records = [json.loads(line) for lines in parts for line in lines]
    ids = [record["id"] for record in records if record["status"] == "ok"]
    return {item: (run / "maps" / f"{item}.npz").stat().st_mtime_ns for item in ids}


def wait_for(run: Path, items: int) -> None:
    end = time.monotonic() + 60
    while len(finished(run)) < items:
        assert time.monotonic() < end, f"{len(finished(run))} items done, waited for {items}"
        time.sleep(0.001)


def map_files(run: Path) -> dict[str, bytes]:
    return {file.relative_to(run / "maps").as_posix(): file.read_bytes() for file in (run / "maps").rglob("*.npz")}


def arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
