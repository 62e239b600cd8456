"""Images worked on side by side on a CPU, one a thread: their bits are those of one thread whatever the machine has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
Result = TypeVar("Result")


class Each(Protocol):
    """Every item with what work makes of it, in order; a few are worked on ahead."""

    def __call__(self, work: Callable[[T], Result], items: Iterable[T]) -> Iterator[tuple[T, Result]]: ...


@contextmanager
def side_by_side(workers: int | None = None) -> Iterator[Each]:
    """As many workers as torch has threads; within each torch has one. Or `workers`, which share torch's threads.

    Where the caller fails or is interrupted, what was begun is finished and what waits is dropped.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers or threads)

    def each(work: Callable[[T], Result], items: Iterable[T]) -> Iterator[tuple[T, Result]]:
        waiting: deque[tuple[T, Future[Result]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > 2 * (workers or threads):
                first, future = waiting.popleft()
                yield first, future.result()
        for item, future in waiting:
            yield item, future.result()

    if workers is None:
        torch.set_num_threads(1)
    try:
        yield each
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
