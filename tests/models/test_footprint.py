"""The account of memory: what a pass holds, and what a machine or a container leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from advcam_fast.bench.networks import random_model
from advcam_fast.models import footprint, freeze
from advcam_fast.models.footprint import available_bytes, peak_bytes

CPU = torch.device("cpu")


def test_peak_is_what_is_held_at_once() -> None:
    def run() -> torch.Tensor:
        first = torch.ones(1000)  # 4,000 bytes
        second = first + 1
        view = second.view(10, 100)
        del first, second
        third = view.double()  # 4,000 and 8,000
        del view
        return third.sum()

    assert peak_bytes(run) == 12_000


def test_a_pass_and_its_gradient_take_bytes_by_the_pixel() -> None:
    """Less in bfloat16, and of the order of what the process is seen to take (benchmarks/memory.py: a half of it)."""
    model = random_model("resnet18")
    single, half = (freeze(model.features, dtype).bytes_per_pixel for dtype in (torch.float32, torch.bfloat16))
    assert single is not None
    assert half is not None
    assert 3 * 2 + 64 / 4 * 2 < half < 0.8 * single < single < 1000  # the image and conv1's output at least
    assert freeze(lambda images: images).bytes_per_pixel is None


def test_autograd_holds_more_than_a_tape() -> None:
    """A network that no tape can hold is measured as well."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU())
    on_tape = freeze(network)
    assert on_tape.executor == "tape"
    hooked = torch.nn.Sequential(network, torch.nn.Identity())
    hooked.forward = lambda x: network(x) if bool(x.detach().sum() < 1e9) else x  # type: ignore[method-assign]
    traced = freeze(hooked)
    assert "not folded" in traced.executor
    assert on_tape.bytes_per_pixel is not None
    assert traced.bytes_per_pixel is not None
    assert traced.bytes_per_pixel > on_tape.bytes_per_pixel


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        ({}, 8_000_000 * 1024),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 3"}, 8_000_000 * 1024),
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\ninactive_file 30"}, 330),
    ],
    ids=["no group", "no limit", "limit"],
)
def test_what_a_machine_or_its_container_leaves(
    group: dict[str, str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    for name, text in group.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(footprint, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(footprint, "_GROUP", tmp_path)
    assert available_bytes(CPU) == wanted


def test_where_nobody_says_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(footprint, "_GROUP", tmp_path / "none")
    assert available_bytes(CPU) is None
    assert available_bytes(torch.device("meta")) is None
