import pytest
from device_clock import bandwidth, call_seconds, kernel_seconds, rounds_within


@pytest.mark.parametrize(
    ("name", "speed"),
    [
        ("NVIDIA H100 80GB HBM3", 3350e9),
        ("NVIDIA H100 PCIe", 2000e9),
        ("NVIDIA H200", 4800e9),
        ("NVIDIA GH200 480GB", 4000e9),
        ("NVIDIA A100-SXM4-80GB", 2039e9),
        ("NVIDIA L40S", 864e9),
        ("NVIDIA L4", 300e9),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H300", None),
    ],
)
def test_bandwidth_is_the_data_sheets_or_none(name, speed):
    assert bandwidth(name) == speed


def test_clocks_count_seconds():
    import time

    for clock in (call_seconds, kernel_seconds):
        assert 0.004 < clock(lambda: time.sleep(0.005), "cpu", 3) < 0.5


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 30), (1e-6, 30), (0.1, 10), (0.5, 3), (60.0, 3)])
def test_a_slow_call_is_timed_less_often(seconds, rounds):
    assert rounds_within(1.0, seconds, 30) == rounds
