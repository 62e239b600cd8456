"""Where the extension is missing, every op still works, through the reference, and says so."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, warnings
sys.modules["advcam_fast._C"] = None  # what a failed import leaves
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import advcam_fast as af
assert any("compiled kernels could not be loaded" in str(w.message) for w in caught), caught
import torch
from advcam_fast.ops import reference
from advcam_fast.ops.backend import backend_of
from advcam_fast.pipelines.doctor import advice, diagnose
assert backend_of("cpu") == "reference"
assert any("could not be loaded" in line for line in advice(diagnose()))
x, g = torch.randn(4, 3, 8, 9), torch.randn(4, 3, 8, 9).contiguous(memory_format=torch.channels_last)
y, version = x.clone(), x._version
assert torch.equal(af.ops.climb_step(x, g, 0.1), reference.climb_step(y, g, 0.1)) and torch.equal(x, y)
assert x._version > version
z = torch.randn(4, 5, 6, 7)
loss = af.ops.climb_loss(z, torch.tensor([0, 4]), torch.ones(2, 5), torch.ones(2))
assert loss.pair_map.shape == (2, 6, 7)
assert af.ops.cam_accumulate([loss.pair_map], torch.zeros(2, 20, 20), normalise=True).max() > 0.99
print("reference works")
"""


def test_a_missing_extension_falls_back_to_the_reference_and_says_so():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "reference works"


def test_the_extension_of_this_checkout_is_used():
    from advcam_fast.ops.backend import backend_of

    assert backend_of("cpu") == "native"


def test_only_its_entry_point_is_exported():
    from advcam_fast import _C

    try:
        symbols = subprocess.run(
            ["nm", "-D", "--defined-only", _C.__file__], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("no nm to read the symbols with")
    assert [line.split()[-1] for line in symbols.stdout.splitlines()] == ["PyInit__C"]


def test_one_openmp_runtime():
    """In a process of its own: packages that other tests import bring theirs."""
    if not Path("/proc/self/maps").is_file():
        pytest.skip("no /proc to read the loaded libraries from")
    code = "import torch; from advcam_fast import _C; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert any("/_C." in line for line in maps)
    libraries = {line.split()[-1] for line in maps if "libgomp" in line or "libiomp" in line}
    assert len(libraries) <= 1, libraries
