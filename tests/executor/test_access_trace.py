"""How climb_step's kernels touch memory: whole sectors, and no byte more than two passes need."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from conftest import HERE, Build, Drive, driver

ELEMENTS = 2 * 5008  # of the driver's tensors
SECTOR = 32


class Traffic(NamedTuple):
    read: int  # bytes
    read_sectors: int
    written: int
    written_sectors: int

    def efficiency(self) -> float:
        return (self.read + self.written) / (SECTOR * (self.read_sectors + self.written_sectors))


@pytest.fixture(scope="session")
def tracer(build: Build) -> Drive:
    flags = ("-O0", "-DADVCAM_TRACE")
    kernels = build("trace_driver.o", [HERE / "trace_driver.cpp"], *flags, "-fsanitize=thread", "-c")
    return driver(build("trace", [HERE / "trace_runtime.cpp"], *flags, objects=[kernels]))


def trace(tracer: Drive, what: str) -> dict[str, Traffic]:
    done = tracer(what)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {name: Traffic(*map(int, counts)) for name, *counts in lines}


def test_float32(tracer: Drive) -> None:
    traffic = trace(tracer, "fp32")
    image, gradient = traffic["image"], traffic["gradient"]
    assert min(image.efficiency(), gradient.efficiency()) >= 0.95
    assert (image.read, image.written, gradient.read, gradient.written) == (8 * ELEMENTS, 4 * ELEMENTS, 8 * ELEMENTS, 0)
    assert traffic["network_input"] == (0, 0, 0, 0)


def test_bfloat16_network(tracer: Drive) -> None:
    traffic = trace(tracer, "bf16")
    image, gradient, network_input = (traffic[name] for name in ("image", "gradient", "network_input"))
    assert min(image.efficiency(), gradient.efficiency(), network_input.efficiency()) >= 0.95
    assert (image.read, image.written) == (8 * ELEMENTS, 4 * ELEMENTS)
    assert (gradient.read, network_input.written) == (4 * ELEMENTS, 2 * ELEMENTS)


def test_the_tracer_finds_strided_accesses(tracer: Drive) -> None:
    traffic = trace(tracer, "strided")
    assert traffic["from"].read == 4096 and traffic["to"].written == 4096
    assert traffic["from"].efficiency() == traffic["to"].efficiency() == 0.25
