import pytest

from advcam_fast.bench.table import benchmark_table, duration, markdown


def entry(group, implementation, median, **extra):
    return {"group": group, "stats": {"median": median}, "extra_info": {"implementation": implementation, **extra}}


def test_ratios_are_to_ours_and_ours_comes_first():
    report = {"benchmarks": [entry("a", "eager", 6e-3), entry("a", "ours", 2e-3), entry("b", "ours", 5e-6)]}
    assert benchmark_table(report).splitlines() == [
        "| median (× ours) | ours |        eager |",
        "| --------------- | ---: | -----------: |",
        "| a               | 2 ms | 6 ms (3.00×) |",
        "| b               | 5 µs |              |",
    ]


def test_what_a_round_holds_beside_its_steps_is_taken_off():
    report = {"benchmarks": [entry("a", "ours", 7.0, less=1.0, per=3), entry("a", "plain", 8.0)]}
    assert "8 s (4.00×)" in benchmark_table(report)


@pytest.mark.parametrize(("seconds", "text"), [(1.234, "1.23 s"), (0.5, "500 ms"), (2e-5, "20 µs"), (3e-7, "0.3 µs")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_markdown_without_rows():
    assert markdown(["a", "b"], []) == "| a | b |\n| - | : |"
