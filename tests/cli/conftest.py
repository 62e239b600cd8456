"""One network and one way to run the command for all tests of the command line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import FAST, Command, Ended, save_network


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """For the process that commands are forked from: a fork must not inherit a pool of threads."""
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "net.safetensors")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ended]:
    """Runs `advcam-fast` to its end."""
    return lambda *arguments, **how: Command(*arguments, folder=tmp_path / "printed", **how).end()


@pytest.fixture
def label(run: Callable[..., Ended], network: Path) -> Callable[..., Ended]:
    """Runs `advcam-fast label` with the small network and few steps; later options override."""

    def run_label(data: str, out: Path, *more: object, **how: object) -> Ended:
        given = ("--model", "squeezenet1_1", "--weights", network, "--preset", "cam", *FAST)
        return run("label", "--data", data, "--out", out, *given, *more, **how)

    return run_label
