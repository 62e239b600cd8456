"""label --plan: disk is counted, time follows the probe, and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ended, save_list, save_photo

from advcam_fast.climb import ClimbConfig, climb_cost
from advcam_fast.data import Dataset, Item, open_dataset
from advcam_fast.pipelines import plan as planning
from advcam_fast.pipelines.label import LabelRule, Outcome
from advcam_fast.pipelines.shards import READING, balanced_shards, item_costs

GiB = 2**30


def photos(folder: Path, missing: int = 0) -> str:
    rows = [(f"{i}.png", "dog;cat" if i % 2 else "dog") for i in range(12)]
    for i, (image, _) in enumerate(rows[missing:]):
        save_photo(folder / image, i, (40 + 3 * i, 33 + i))
    return save_list(folder, rows, photos=False)


@pytest.mark.parametrize("more", [(), ("--full", "--store", "uint8")])
def test_the_disk_is_what_a_run_takes(label: Callable[..., Ended], tmp_path: Path, more: tuple[str, ...]) -> None:
    data, out = photos(tmp_path / "photos", missing=2), tmp_path / "run"
    ended = label(data, out, "--plan", "--json", *more)
    assert ended.code == 0, ended.err
    assert not out.exists()
    plan = ended.json()
    assert (plan["images"], plan["to_do"], plan["unreadable"], plan["too_large"]) == (12, 12, 2, 0)
    assert (plan["labels_per_image"], plan["machines"], plan["processes"]) == (1.5, 1, 1)
    assert label(data, out, *more).code == 3
    maps = sum(file.stat().st_size for file in (out / "maps").rglob("*.npz"))
    lines = sum(
        len(line) for line in (out / "manifest" / "main.jsonl").read_bytes().splitlines(True) if b'"ok"' in line
    )
    assert plan["disk"] == pytest.approx(maps + lines, rel=0.002)
    assert 0.05 * GiB < plan["memory"] < 8 * GiB
    assert 0 < plan["seconds_from"] <= plan["seconds"] <= plan["seconds_to"]
    assert len(plan["probes"]) == 3


def test_what_is_done_is_not_planned_again(label: Callable[..., Ended], tmp_path: Path) -> None:
    data, out = photos(tmp_path / "photos"), tmp_path / "run"
    assert label(data, out).code == 0
    for item in "123":
        (out / "maps" / f"{item}.npz").unlink()
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    shown = label(data, out, "--plan", "--machines", "2")
    assert shown.code == 0
    assert "labelling 3 of 12 images" in shown.err and "2, 2" in shown.err and "too large for memory" in shown.err
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


class Clock:
    """Ticks for the pixels of what is labelled: 1 s for each unit of cost, 3 the first time a size comes."""

    def __init__(self) -> None:
        self.now, self.seen = 0.0, set()

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return 0.0


def test_time_follows_the_probes(label: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ClimbConfig.preset("cam")
    items = [Item(str(n), Path(str(n)), ("dog",) * 1) for n in range(100)]
    sizes = {item.id: (40, 60) if n < 60 else (80, 60) for n, item in enumerate(items)}
    clock = Clock()

    class Maker:
        device = planning.torch.device("cpu")

        def __init__(self) -> None:
            self.config = config

        def pair_bytes(self, height: int, width: int) -> float:
            return 100.0 * height * width

    class Made:
        maker, rule, class_indices, full, store = Maker(), LabelRule(), {"dog": 0}, False, "fp16"

        def results(self, dataset: Dataset, todo: list[Item]):
            for item in todo:
                first = item.id not in clock.seen
                clock.seen.add(item.id)
                clock.now += climb_cost(*sizes[item.id], 1, config) * (3 if first else 1)
                yield item, None

        def packed(self, item: Item, result: None) -> Outcome:
            return Outcome(item.id, b"", (), ("dog",))

    monkeypatch.setattr(planning, "time", clock)
    monkeypatch.setattr(planning, "image_sizes", lambda todo: [sizes[item.id] for item in todo])
    dataset = Dataset(items, None, "csv:x")
    total = sum(climb_cost(*size, 1, config) for size in sizes.values())
    alone = planning.plan_label(dataset, items, Made(), tmp_path, 1)
    new = 2 / 100  # of the sizes
    assert alone["seconds"] == pytest.approx(total * (1 + 2 * new), rel=0.03)
    assert planning.plan_label(dataset, items, Made(), tmp_path, 4)["seconds"] == pytest.approx(total / 4, rel=0.05)
    most = planning.plan_label(dataset, items, Made(), tmp_path, 10_000)["seconds"]
    assert most == pytest.approx(climb_cost(80, 60, 1, config), rel=0.05), "one image is one machine's"
    monkeypatch.setattr(planning, "available_bytes", lambda device: 100 * 2 * 2 * 50 * 60)
    assert planning.plan_label(dataset, items, Made(), tmp_path, 1)["too_large"] == 40


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--plan", "--machines", "0"), "--machines 0: wanted is a whole number >= 1, with --plan"),
        (("--machines", "2"), "--machines 2: wanted is a whole number >= 1, with --plan"),
        (("--plan", "--store", "fp8"), "store 'fp8', wanted fp16, fp32, uint8"),
        (("--workers", "2"), "--workers 2: wanted is a whole number >= 1, with --engine ray"),
        (("--engine", "slurm"), "--engine slurm: wanted is local or ray"),
    ],
)
def test_options_that_mean_nothing(
    label: Callable[..., Ended], tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    ended = label(photos(tmp_path / "photos"), tmp_path / "run", *more)
    assert ended.code == 2 and said in ended.error
    assert not (tmp_path / "run").exists()


def test_nothing_to_plan_is_said(label: Callable[..., Ended], tmp_path: Path) -> None:
    ended = label(photos(tmp_path / "photos", missing=12), tmp_path / "run", "--plan")
    assert ended.code == 2 and "of 12 images to do none can be read: nothing to plan" in ended.error


def test_shards_are_of_equal_cost_and_hold_everything_once() -> None:
    costs = [1.0] * 100 + [30.0] * 9 + [100.0] * 4  # the largest last
    for count in (1, 2, 3, 7):
        shards = balanced_shards(costs, count)
        assert sorted(index for shard in shards for index in shard) == list(range(len(costs)))
        loads = [sum(costs[index] for index in shard) for shard in shards]
        assert max(loads) - min(loads) <= 2
        assert all(shard == sorted(shard) for shard in shards)
    assert balanced_shards([0.0] * 10, 2) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert balanced_shards([], 2) == [[], []]


def test_costs_are_pixels_times_labels_times_steps(tmp_path: Path) -> None:
    items = open_dataset(photos(tmp_path / "photos", missing=1)).items[:3]
    paper = ClimbConfig.preset("voc-cvpr2021")
    scaled = 0.25 * 13 + 27 * (1 + 2.25 + 4)
    assert item_costs(items[1:2], paper) == pytest.approx([(2 * scaled + READING) * 40 * 33], rel=0.05)
    assert item_costs(items, paper)[0] == 0, "what cannot be read is no work"
    general = item_costs(items, ClimbConfig.preset("general"))
    assert general[1] == pytest.approx(2 * general[2], rel=0.02), "of one area whatever the photo; two tags and one"
    assert len(set(item_costs(items[1:], ClimbConfig.preset("general"), predicted_labels=1))) == 1
