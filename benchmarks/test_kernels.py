"""Every kernel against eager PyTorch and torch.compile of it, on a CPU.

Eager PyTorch is the reference, or what a case names in its place. The reference gets contiguous tensors, which it is
faster with; the kernels get channels-last ones, as in the engine. dense_crf has a peer of its own: test_crf_peer.py;
what evaluates has others too: test_evaluate_peer.py.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from advcam_fast import ops
from advcam_fast.bench.agreement import check
from advcam_fast.bench.cases import CASES, EVALUATION_CASES, Case

IMPLEMENTATIONS = ("ours", "eager", "compiled")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("threads", [1, 0], indirect=True, ids=["one_thread", "all_threads"])
@pytest.mark.parametrize(
    "case",
    [case for case in (*CASES, *EVALUATION_CASES) if case.stem != "dense_crf"],
    ids=lambda case: f"{case.stem}, {case.name}",
)
def test_kernel(benchmark: BenchmarkFixture, case: Case, threads: int, implementation: str, shrink: int) -> None:
    if implementation == "compiled" and not case.compiles:
        pytest.skip("torch.compile would take minutes")
    arguments = case.arguments(shrink=shrink, channels_last=implementation == "ours")
    run = getattr(ops, case.stem) if implementation == "ours" else case.eager(arguments)
    if implementation == "compiled":
        torch.compiler.reset()
        run = torch.compile(run, dynamic=False)
    check(case.stem, run, arguments, limit=None if implementation == "ours" else case.peer_error)
    benchmark.group = f"{case.stem}, {case.name}, {threads} thread{'s' * (threads > 1)}"
    benchmark.extra_info["implementation"] = implementation
    run(**arguments)
    benchmark(run, **arguments)
