"""The examples run as a reader runs them, and what they show is so."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
RAY = ROOT / "examples" / "ray_job.py"
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {RAY})


def names_of(name: str, run_name: str = "example") -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name=run_name)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_runs_and_says_what_it_shows(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = names_of(file.stem, "__main__")
    assert f"python examples/{file.name}" in content["__doc__"]
    assert capsys.readouterr().out.strip()


def test_own_classifier_has_maps_of_its_photos() -> None:
    shapes = [tuple(result.full.shape) for result in names_of("own_classifier")["results"]]
    assert shapes == [(1, 64, 96), (2, 72, 96)]


def test_numpy_arrays_are_written_in_place() -> None:
    content = names_of("numpy_only")
    assert abs(content["image"] - content["expected"]).max() < 1e-6
    assert content["reached"][:, :31].sum() > 1000 and content["reached"][:, 31:].sum() == 0


def test_the_crf_is_pydensecrfs() -> None:
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    from pydensecrf.utils import unary_from_labels

    content = names_of("replace_pydensecrf")
    square, truth, guess = content["square_photo"]()
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 12, generator=draw) * 255
    smooth = torch.nn.functional.interpolate(coarse, guess.shape, mode="bilinear")[0].permute(1, 2, 0)
    doubted = torch.randint(0, 3, (4, 4), generator=draw).repeat_interleave(24, 0).repeat_interleave(24, 1)
    for photo, labels, count in ((square, guess, 2), (smooth.to(torch.uint8).contiguous(), doubted, 3)):
        height, width = labels.shape
        field = densecrf.DenseCRF2D(width, height, count)
        field.setUnaryEnergy(unary_from_labels(labels.numpy(), count, gt_prob=0.7, zero_unsure=False))
        field.addPairwiseGaussian(sxy=3, compat=3)
        field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=photo.numpy(), compat=10)
        theirs = torch.tensor(np.array(field.inference(10))).argmax(0).view(height, width)
        assert len(theirs.unique()) == count
        assert (content["sharpen"](photo, labels, count) == theirs).double().mean() >= 0.999
    ours = content["sharpen"](square, guess, 2)
    assert (ours == truth).double().mean() > (guess == truth).double().mean() + 0.05


def test_the_boxes_are_those_of_opencvs_largest_contours() -> None:
    cv2 = pytest.importorskip("cv2")
    coarse = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    maps = torch.nn.functional.interpolate(coarse, (48, 64), mode="bicubic")[:, 0].clamp(0, 1)
    found = names_of("replace_wsolevaluation")["largest_boxes"](maps)
    for number, image in enumerate((maps * 255).to(torch.uint8).numpy()):
        for level in range(256):
            _, above = cv2.threshold(image, level, 255, cv2.THRESH_BINARY)
            contours = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            wanted = [0, 0, 0, 0]
            if contours:
                x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
                wanted = [x, y, min(x + width, 63), min(y + height, 47)]
            assert found[number, level].tolist() == wanted, (number, level)


def test_max_box_acc_tells_a_hit_from_a_miss() -> None:
    content = names_of("replace_wsolevaluation")
    maps = torch.zeros(2, 32, 32)
    maps[:, 8:20, 8:20] = 0.8
    truth = torch.tensor([[8, 8, 19, 19], [20, 20, 31, 31]])
    assert content["max_box_acc"](maps, truth) == 0.5
    assert content["box_iou"](torch.tensor([0, 0, 9, 9]), torch.tensor([0, 5, 9, 14])).item() == pytest.approx(1 / 3)


def test_seams_map_is_the_one_behind_pcm() -> None:
    """With PCM switched off the accumulated map is another."""
    import advcam_fast as af

    content = names_of("seam_hook")
    photo = torch.randint(0, 256, (3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = []
    for pcm in (content["SmallSeam"].pcm, lambda maps, features: maps):
        torch.manual_seed(0)
        network = content["SmallSeam"]().eval()
        network.pcm = pcm
        maps.append(af.compute_maps(content["seam_model"](network), [photo], [[0, 2]], content["CONFIG"])[0].full)
    assert (maps[0] - maps[1]).abs().max() > 0.05


def test_a_worker_of_the_ray_job_has_the_maps_of_its_images() -> None:
    pytest.importorskip("ray", reason="ray is not installed: the extra [scale]")
    import advcam_fast as af

    content = names_of(RAY.stem)
    photos = content["photos"](2)
    batch = {name: [photo[name] for photo in photos] for name in photos[0]}
    made = content["Maps"]()(batch)
    images = [torch.from_numpy(photo["image"]).permute(2, 0, 1) for photo in photos]
    wanted = af.compute_maps(content["small_model"](), images, [[0], [1]], af.ClimbConfig.preset("fast"))
    assert made["id"] == [0, 1]
    for found, result in zip(made["maps"], wanted, strict=True):
        assert found.shape == (1, 12, 16) and (found == result.strided.numpy()).all() and found.max() > 0.9


@pytest.mark.soak  # a cluster takes half a minute to start on a busy machine
def test_the_ray_job_runs() -> None:
    pytest.importorskip("ray", reason="ray is not installed: the extra [scale]")
    ended = subprocess.run([sys.executable, str(RAY)], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.splitlines() == [f"{number} (1, 12, 16)" for number in range(4)]
