"""What holds for all tests: random numbers, what one process of `make test` keeps together, the optional photos."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TOGETHER = ("browser", "cli", "executor", "export")  # folders whose tests share what takes long to make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests, or a folder's, go to one process of pytest-xdist; cli's come first, for it forks its commands."""
    for item in items:
        together = item.path.parent if item.path.parent.name in TOGETHER else item.path
        item.add_marker(pytest.mark.xdist_group(together.name))
    items.sort(key=lambda item: item.path.parent.name != "cli")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Which tests a process ran before must not choose a test's numbers, nor those of its fixtures."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no real photos: {DATA} is absent")
    return DATA
