"""One run, exported in every format."""

from pathlib import Path

import pytest
from exporting import export
from sample_run import SampleRun, make_run

from advcam_fast.export import FORMATS


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleRun:
    return make_run(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def exported(sample: SampleRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    assert export(sample, out, *FORMATS) == []
    return out
