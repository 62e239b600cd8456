"""What all benchmarks share: sizes, threads, and a report without what is private or bulky."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

SHRINK = 16  # of --tiny


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tiny", action="store_true", help="sizes that only show that the benchmarks run")


@pytest.fixture
def shrink(request: pytest.FixtureRequest) -> int:
    """What sides are divided by."""
    return SHRINK if request.config.getoption("--tiny") else 1


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads named by the test's parameter, 0 standing for all."""
    before = torch.get_num_threads()
    wanted = request.param or torch.get_num_threads()
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Thousands of single timings say no more than their statistics do."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
