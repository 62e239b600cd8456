"""What the verbs say: a progress bar over the items of a folder, and how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from advcam_fast.pipelines import label as labelling
from advcam_fast.store import ItemFolder
from advcam_fast.train import TrainingStep


def plain_console(stderr: bool) -> Console:
    """Prints text as it is: brackets and colons are part of class names and paths, not markup."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


console = plain_console(stderr=True)


def say(line: str, style: str | None = None) -> None:
    console.print(line, style=style, soft_wrap=True)


def with_progress(
    doing: str, folder: ItemFolder, total: int, work: Callable[[Any], None], as_json: bool, own: int | None = None
) -> dict[str, Any]:
    """Does work on the items of a folder under a progress bar; what the folder holds at its end, or at Ctrl-C.

    own: of how many items this process reports, where others work on the folder too.
    """
    begin, before, interrupted = time.monotonic(), len(folder.done_ids()), False
    with bar(doing, *((total, before) if own is None else (own, 0)), hidden=as_json) as advance:
        try:
            work(advance)
        except KeyboardInterrupt:
            interrupted = True
    failures = [record for record in folder.records() if record.status == "failed"] if folder.counts()["failed"] else []
    now = len(folder.done_ids()) - before
    seconds = time.monotonic() - begin
    return {
        **folder.counts(),
        "images": total,
        "done_before": before,
        "done_now": now,
        "seconds": round(seconds, 3),
        "images_per_second": round(now / seconds, 3) if seconds > 0 else 0.0,
        "failures": [{"id": record.id, "reason": record.reason} for record in failures],
        "interrupted": interrupted,
    }


def with_bar(doing: str, total: int, work: Callable[[Any], None], as_json: bool) -> dict[str, Any]:
    """Does work that keeps no record of its own under a progress bar; what it told of its items."""
    begin, done, failures, interrupted = time.monotonic(), 0, [], False
    with bar(doing, total, 0, hidden=as_json) as advance:

        def heard(now: labelling.Progress) -> None:
            nonlocal done
            done = now.done
            if now.reason:
                failures.append({"id": now.item_id, "reason": now.reason})
            advance(now)

        try:
            work(heard)
        except KeyboardInterrupt:
            interrupted = True
    seconds = time.monotonic() - begin
    return {
        "ok": done - len(failures),
        "failed": len(failures),
        "images": total,
        "done_now": done,
        "seconds": round(seconds, 3),
        "images_per_second": round(done / seconds, 3) if seconds > 0 else 0.0,
        "failures": failures,
        "interrupted": interrupted,
    }


@contextmanager
def bar(doing: str, total: int, done: int, hidden: bool) -> Iterator[Any]:
    begin = time.monotonic()
    with _progress(hidden) as progress:
        task = progress.add_task(doing, total=total, completed=done, note="")

        def advance(now: labelling.Progress) -> None:
            rate = (now.done - done) / max(time.monotonic() - begin, 1e-9)
            progress.update(task, completed=now.done, total=now.total, note=f"{rate:.2f} images/s")

        yield advance


@contextmanager
def training_bar(hidden: bool) -> Iterator[Callable[[TrainingStep], None]]:
    """A progress bar over the steps of a training, with its loss."""
    with _progress(hidden) as progress:
        task = progress.add_task("training", total=None, note="")
        yield lambda now: progress.update(task, total=now.total, completed=now.done, note=f"loss {now.loss:.4f}")


def _progress(hidden: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=hidden)


def report(
    summary: dict[str, Any], out: Path, as_json: bool, made: str = "maps", resumes: bool = True, speak: bool = True
) -> None:
    """Says how the run ended, unless another process does, and leaves with its exit code; `resumes`: has a manifest."""
    if not speak:
        raise typer.Exit(130 if summary["interrupted"] else 0)
    if as_json:
        print(json.dumps(summary), flush=True)  # a reader that went away is met here, not at exit
    else:
        _say_failures(summary, f"see {out / 'manifest' if resumes else '--json'}")
        executor = f", executor: {summary['executor']}" if "executor" in summary else ""
        say(
            f"{out}: {summary['ok']} of {summary['images']} images have {made}, {summary['failed']} failed; "
            f"{summary['done_now']} done now in {summary['seconds']:.1f} s "
            f"({summary['images_per_second']:.2f} images/s{executor})"
        )
        if "coco" in summary:
            say(f"{summary['instances']} instances in {summary['coco']}")
        if "weights" in summary:
            say(f"trained on {summary['trained_on']} images; weights: {summary['weights']}")
        if "picture" in summary:
            say(f"look at {summary['picture']}")
        if "page" in summary:
            say(f"open {summary['page']} in a browser")
        if summary["interrupted"]:
            say("stopped; the same command goes on from here" if resumes else "stopped; nothing of it was kept")
    _leave(summary)


def report_training(summary: dict[str, Any], out: Path, as_json: bool) -> None:
    """Says how a training on images ended and leaves with its exit code."""
    if as_json:
        print(json.dumps(summary), flush=True)
    elif summary["interrupted"]:
        say("stopped; the same command goes on from here")
    else:
        _say_failures(summary, "--json lists them all")
        score = ", ".join(f"{name} {value:.3f}" for name, value in summary["score"].items())
        say(f"{out}: trained on {summary['trained_on']} images in {summary['seconds']:.1f} s")
        say(f"weights: {summary['weights']}" + (f"; best, {score}: {summary['best']}" if score else ""))
    _leave(summary)


def _say_failures(summary: dict[str, Any], more: str) -> None:
    for failure in summary["failures"][:20]:
        say(f"failed: {failure['id']}: {failure['reason']}")
    if len(summary["failures"]) > 20:
        say(f"and {len(summary['failures']) - 20} more, {more}")


def _leave(summary: dict[str, Any]) -> None:
    if summary["interrupted"]:
        raise typer.Exit(130)
    if summary["failed"]:
        raise typer.Exit(3)
