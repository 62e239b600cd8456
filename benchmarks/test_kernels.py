"""Every kernel against its eager reference and torch.compile of it, on a CPU.

The reference gets contiguous tensors, which it is faster with; the kernels get channels-last ones, as in the engine.
"""

from __future__ import annotations

import pytest
import torch
from agreement import check
from pytest_benchmark.fixture import BenchmarkFixture

from advcam_fast import ops
from advcam_fast.bench.cases import CASES, Case
from advcam_fast.ops import reference

IMPLEMENTATIONS = ("ours", "eager", "compiled")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("threads", [1, 0], indirect=True, ids=["one_thread", "all_threads"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stem}, {case.name}")
def test_kernel(benchmark: BenchmarkFixture, case: Case, threads: int, implementation: str, shrink: int) -> None:
    if implementation == "compiled":
        torch.compiler.reset()
        run = torch.compile(getattr(reference, case.stem), dynamic=False)
    else:
        run = getattr(ops if implementation == "ours" else reference, case.stem)
    arguments = case.arguments(shrink=shrink, channels_last=implementation == "ours")
    check(case.stem, run, arguments)
    benchmark.group = f"{case.stem}, {case.name}, {threads} thread{'s' * (threads > 1)}"
    benchmark.extra_info["implementation"] = implementation
    run(**arguments)
    benchmark(run, **arguments)
