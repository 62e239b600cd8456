"""label on a Ray cluster: actors of Ray Data make the maps, this process alone writes them."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any

import torch

from advcam_fast.climb import ClimbConfig, MapMaker
from advcam_fast.data import Dataset, Item
from advcam_fast.errors import StoppedError, UsageError, first_line
from advcam_fast.pipelines.label import (
    GPU_IMAGES,
    Labeller,
    LabelRule,
    Outcome,
    Progress,
    items_to_do,
    write_outcome,
)
from advcam_fast.store import RunFolder

MOST_BLOCKS = 20_000  # of images that Ray deals out; each is some bookkeeping
RETRIES = 1  # of a block whose worker was lost; then its images come one by one, as often

_Row = dict[str, Any]


class _Worker:
    """An actor: from pickled items to pickled outcomes."""

    def __init__(
        self,
        model: Any,
        config: ClimbConfig,
        rule: LabelRule,
        class_indices: dict[str, int],
        full: bool,
        store: str,
        dataset: Dataset,
        threads: int,
    ) -> None:
        import ray

        torch.set_num_threads(threads)
        net: Any = ray.get(model)
        maker = MapMaker(net.to("cuda" if ray.get_gpu_ids() else "cpu"), config)
        self.labeller, self.dataset = Labeller(maker, rule, class_indices, full, store), dataset

    def __call__(self, batch: _Row) -> _Row:
        items: list[Item] = [pickle.loads(item) for item in batch["item"]]
        done: list[Outcome | StoppedError] = []
        try:
            for found in self.labeller.results(self.dataset, items):
                outcome = self.labeller.packed(*found)
                done.append(outcome._replace(content=bytes(outcome.content)))
        except Exception as error:  # told, so that only a lost worker is a block without an answer
            where = "" if isinstance(error, StoppedError) else f"a Ray worker failed: {type(error).__name__}: "
            done.append(StoppedError(f"{where}{first_line(error)}"))
        return {"outcome": [pickle.dumps(each) for each in done]}


def label_on_ray(
    dataset: Dataset,
    labeller: Labeller,
    run: RunFolder,
    report: Callable[[Progress], None],
    device: str,
    workers: int | None,
) -> None:
    """Does what label_dataset does, on the cluster of RAY_ADDRESS or one of this machine's own.

    workers: how many, each with one GPU, or as many CPUs as this process has threads; by default what the cluster
    holds. A worker that is lost is replaced and its images are dealt out again; an image that takes its worker with it
    each time is recorded as failed. Raises as label_dataset.
    """
    todo = items_to_do(dataset, run)
    finished = len(dataset.items) - len(todo)
    if not todo:
        return
    with _cluster() as ray:
        deal = _Deal(ray, dataset, labeller, "cpu" if device == "cpu" else "auto", workers)
        lost = todo
        for images in (None, 1):  # those of a block that was lost whole are dealt out one by one
            for outcome in deal.outcomes(lost, images):
                write_outcome(run, outcome)
                finished += 1
                report(Progress(outcome.item_id, finished, len(dataset.items), outcome.reason))
            lost = items_to_do(dataset, run)
            if not lost:
                return
    for item in lost:
        reason = f"the Ray worker that had it was lost, {2 * (RETRIES + 1)} times"
        run.fail(item.id, reason, labels=item.labels or ())
        finished += 1
        report(Progress(item.id, finished, len(dataset.items), reason))


@contextmanager
def _cluster() -> Iterator[Any]:
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray: in the source folder, pip install '.[scale]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with redirect_stdout(sys.stderr):  # where it tells of lost workers; it keeps what it finds when it is imported
        import ray
        import ray.data

        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_errored_blocks = -1
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is told by us, in one line
        try:
            yield ray
        except ray.exceptions.RayError as error:
            raise StoppedError(f"Ray: {first_line(error)}; the same command goes on") from error
        finally:
            ray.shutdown()


class _Deal:
    """Deals items out to actors, and collects what becomes of them."""

    def __init__(self, ray: Any, dataset: Dataset, labeller: Labeller, device: str, workers: int | None) -> None:
        self.ray = ray
        there, threads = ray.cluster_resources(), torch.get_num_threads()
        self.on_gpu = device == "auto" and there.get("GPU", 0) >= 1
        room = int(there["GPU"] if self.on_gpu else there.get("CPU", 1) // threads)
        if (workers is not None and workers > room) or room < 1:
            what = "GPUs" if self.on_gpu else f"times {threads} CPUs (OMP_NUM_THREADS says how many a worker has)"
            raise UsageError(f"--workers {workers or 1}: the cluster has {room} {what}")
        self.resources = {"num_gpus": 1} if self.on_gpu else {"num_cpus": threads}
        self.workers = workers or room
        self.made_with = dict(
            model=ray.put(labeller.maker.model),
            config=labeller.maker.config,
            rule=labeller.rule,
            class_indices=dict(labeller.class_indices),
            full=labeller.full,
            store=labeller.store,
            dataset=replace(dataset, items=()),
            threads=threads,
        )

    def outcomes(self, items: Sequence[Item], images: int | None) -> Iterator[Outcome]:
        """In any order, each once; those of blocks that were lost do not come. images: of a block."""
        batch = GPU_IMAGES if self.on_gpu else 1
        images = images or max(batch, -(-len(items) // MOST_BLOCKS))
        blocks = self.ray.data.from_items(
            [{"item": pickle.dumps(item)} for item in items], override_num_blocks=-(-len(items) // images)
        )
        with warnings.catch_warnings():  # Ray before 2.64 has no other way to bound retries
            warnings.simplefilter("ignore")
            rows = blocks.map_batches(
                _Worker,
                fn_constructor_kwargs=self.made_with,
                batch_size=batch,
                compute=self.ray.data.ActorPoolStrategy(size=min(self.workers, len(items))),
                max_task_retries=RETRIES,
                **self.resources,
            )
        for row in rows.iter_rows():
            outcome = pickle.loads(row["outcome"])
            if isinstance(outcome, StoppedError):
                raise outcome
            yield outcome
