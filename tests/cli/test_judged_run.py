"""What evaluate reads of a run: full-size maps from strided ones, and the same figures on any number of threads."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import arrays
from judged_runs import NAMES, ROWS, save_data, save_run, truth_of

from advcam_fast import ops
from advcam_fast.climb.plan import padded_size
from advcam_fast.data import Item, open_dataset
from advcam_fast.data.dataset import Dataset
from advcam_fast.pipelines.evaluate import Wanted, evaluate, figures_of
from advcam_fast.pipelines.judged_run import JudgedRun
from advcam_fast.store import RunFolder


def test_strided_maps_come_near_the_full_ones(tmp_path: Path) -> None:
    """Sums at four scales, merged at stride 4 and at full size as the climb does; smooth, as those of a network are."""
    height, width = 225, 301  # far from multiples of 16
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, 5, 6, generator=generator)
    sums = [
        F.interpolate(coarse, (-(-round(height * s) // 16), -(-round(width * s) // 16)), mode="bilinear")[:, 0]
        for s in (1.0, 1.5, 2.0)
    ]
    strided = torch.zeros(2, (height - 1) // 4 + 1, (width - 1) // 4 + 1)
    full = torch.zeros(2, height, width)
    ops.cam_accumulate(sums, strided, tuple(strided.shape[1:]), normalise=True)
    ops.cam_accumulate(sums, full, padded_size(height, width), normalise=True)
    with RunFolder.open(tmp_path / "run", {"labels": {"from": "given"}}, store="fp32") as run:
        maps = {"classes": torch.arange(2), "strided": strided, "initial": full}
        run.finish("a", maps, labels=("cat", "dog"))
    item = Item("a", tmp_path / "a.png", ("cat", "dog"))
    found = JudgedRun(tmp_path / "run", Dataset([item], ("cat", "dog"), "csv:x")).read(item)
    four_times = F.interpolate(strided[None], scale_factor=4, mode="bilinear")[0, :, :height, :width]
    assert found.classes == [0, 1] and found.size == (height, width)
    error, plain = ((one - full).abs().mean() for one in (found.full["advcam"], four_times))
    assert error < 0.01 and error < plain / 2
    assert torch.equal(found.full["cam"], full)


def test_figures_do_not_depend_on_threads_and_the_setting_is_put_back(tmp_path: Path) -> None:
    dataset = open_dataset(save_data(tmp_path / "data"))
    folder, before = save_run(tmp_path / "run"), torch.get_num_threads()
    figures = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            result = evaluate([JudgedRun(folder, dataset)], dataset, Wanted(True, pixels=True))
            assert torch.get_num_threads() == threads
            figures.append(figures_of(result, dataset))
    finally:
        torch.set_num_threads(before)
    assert figures[0] == figures[1]


def test_two_maps_of_one_class_and_tags_of_one_map_are_named(tmp_path: Path) -> None:
    dataset = open_dataset(save_data(tmp_path / "data"))
    settings = {"labels": {"from": "given"}, "class_map": {"cat": 281, "dog": 281, "owl": 24}}
    folder = save_run(tmp_path / "run", settings=settings)
    result = evaluate([JudgedRun(folder, dataset)], dataset, Wanted(True))
    assert dict(result.failures) == {"b/c": "the map of 'cat' stands for cat and dog alike"}
    twice = save_run(tmp_path / "twice", settings=settings | {"class_map": {}}, labels=lambda tags: [*tags, *tags])
    result = evaluate([JudgedRun(twice, dataset)], Dataset(dataset.items[3:5], dataset.class_names, "x"), Wanted(True))
    assert dict(result.failures) == {"f": "two of its maps, dog, dog, are of one class of the data"}


def test_pixels_are_judged_as_the_evaluator_does(tmp_path: Path) -> None:
    """Every map by the mask of its own class at 224 x 224, what is ignored left out."""
    cv2 = pytest.importorskip("cv2")
    from metrics import plain_evaluator as plain

    dataset = open_dataset(save_data(tmp_path / "data"))
    folder = save_run(tmp_path / "run")
    result = evaluate([JudgedRun(folder, dataset)], dataset, Wanted(True, pixels=True))
    maps, masks = [], []
    for number, (name, tags) in enumerate(ROWS):
        given = tags.split(";") if tags else []
        truth = cv2.resize(truth_of(number, given), (224, 224), interpolation=cv2.INTER_NEAREST)
        stored = arrays(folder / "maps" / f"{name}.npz")["full"]
        for label, one in zip(given, stored, strict=True):
            maps.append(plain.score_map(one))
            masks.append(np.where(truth == 255, 255, truth == 1 + NAMES.index(label)))
    found = figures_of(result, dataset)["runs"][0]["pixels"]["advcam"]["PxAP"]["value"]
    assert found == pytest.approx(plain.pixel_average_precision(maps, masks), abs=2e-5)
