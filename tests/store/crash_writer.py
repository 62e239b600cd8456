"""Kills processes that write a run, as `crash_writer.py FOLDER`; test_crash.py judges what they leave behind."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from advcam_fast.store import RunFolder

ITEMS = [f"folder {i % 7}/item {i}" for i in range(400)]
KILLS = 10
SETTINGS = {"steps": 27}
STAGES = ("before the rename", "after the rename", "inside the manifest line", "after the manifest line")


def arrays(number: int) -> dict[str, np.ndarray]:
    maps = np.random.default_rng(number).random((2, 40 + number % 9, 50), dtype=np.float32)
    return {"classes": np.array([number, number + 1]), "strided": maps[:, ::4, ::4], "initial": maps}


def work(run_path: Path, log: Path) -> None:
    """Works through the items; each is noted in the log before any work is done on it."""
    with RunFolder.open(run_path, SETTINGS) as run, open(log, "w", buffering=1) as started:
        done = run.done_ids()
        for number, item in enumerate(ITEMS):
            if item in done:
                continue
            started.write(f"{item}\n")
            if number % 10 == 9:
                run.fail(item, "every tenth fails")
            else:
                run.finish(item, arrays(number), labels=("a", "b"))


def fork(job: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            job()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def wait_for_lines(log: Path, count: int) -> None:
    while count and (not log.exists() or log.read_bytes().count(b"\n") < count):
        time.sleep(0.0002)


def kill_at_random(folder: Path) -> None:
    random.seed(0)
    for attempt in range(KILLS + 1):
        child = fork(lambda attempt=attempt: work(folder / "run", folder / f"{attempt}.started"))
        if attempt < KILLS:
            # counted in items, so that the speed of the machine does not matter; some while the run is being opened
            wait_for_lines(folder / f"{attempt}.started", 0 if attempt % 4 == 0 else random.randint(5, 20))
            time.sleep(random.uniform(0, 0.002))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        (folder / f"{attempt}.status").write_text(str(status))
        manifest = folder / "run" / "manifest" / "main.jsonl"
        if manifest.exists():
            shutil.copy(manifest, folder / f"{attempt}.jsonl")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work_until(stage: str, run_path: Path) -> None:
    """Finishes item 0 and dies at a stage of item 1."""
    replace, write = os.replace, os.write
    with RunFolder.open(run_path, SETTINGS) as run:
        run.finish(ITEMS[0], arrays(0))

        def dying_replace(source: Path, target: Path) -> None:
            if stage == "after the rename":
                replace(source, target)
            die()

        def dying_write(descriptor: int, line: bytes) -> int:
            write(descriptor, line[: len(line) // 2] if stage == "inside the manifest line" else line)
            die()
            return 0

        if stage.endswith("rename"):
            os.replace = dying_replace
        else:
            os.write = dying_write
        run.finish(ITEMS[1], arrays(1))


def main() -> None:
    folder = Path(sys.argv[1])
    kill_at_random(folder)
    for number, stage in enumerate(STAGES):
        child = fork(lambda number=number, stage=stage: work_until(stage, folder / f"stage {number}"))
        _, status = os.waitpid(child, 0)
        (folder / f"stage {number}.status").write_text(str(status))


if __name__ == "__main__":
    main()
