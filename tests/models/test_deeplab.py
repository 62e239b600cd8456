"""Dilated stages against torchvision's own, and segmenters that load again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from tolerances import close
from torch import nn

from advcam_fast.errors import UsageError
from advcam_fast.models import load_model, load_segmenter, new_segmenter
from advcam_fast.models.stages import dilate, five_stages

CLASSES = ("cat", "dog")


@pytest.mark.parametrize("most", [8, 16])
def test_dilated_stages_are_torchvision_s(tmp_path: Path, most: int) -> None:
    torch.manual_seed(0)
    replaced = [False, most == 8, True]
    whole = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=replaced).eval()
    save_file(whole.state_dict(), tmp_path / "net.safetensors")
    model = load_model("resnet50", tmp_path / "net.safetensors")
    assert isinstance(model.features, nn.Module)
    stages = five_stages(model.features, "resnet50")
    dilate(stages, most)
    images = torch.randn(1, 3, 97, 130)
    found, expected = images, whole.maxpool(whole.relu(whole.bn1(whole.conv1(images))))
    with torch.no_grad():
        for stage in stages:
            found = stage(found)
        for layer in (whole.layer1, whole.layer2, whole.layer3, whole.layer4):
            expected = layer(expected)
    assert torch.equal(found, expected) and found.shape[2] == -(-97 // most)


def test_what_was_seen_is_seen_as_before() -> None:
    """Every fourth position of the dilated network is the network's own, away from the edges."""
    torch.manual_seed(0)
    model = load_model("efficientnet_lite0")
    assert isinstance(model.features, nn.Module)
    stages = five_stages(model.features, "efficientnet_lite0")
    images = torch.rand(1, 3, 449, 449)

    def deep() -> torch.Tensor:
        found = images
        with torch.no_grad():
            for stage in stages:
                found = stage.eval()(found)
        return found

    before = deep()
    dilate(stages)
    after = deep()
    assert before.shape[2:] == (15, 15) and after.shape[2:] == (57, 57)
    close(after[..., ::4, ::4][..., 5:10, 5:10], before[..., 5:10, 5:10])


@pytest.mark.parametrize(("head", "stride"), [("v2", 8), ("v3plus", 4)])
def test_a_segmenter_loads_again(tmp_path: Path, head: str, stride: int) -> None:
    torch.manual_seed(0)
    net = new_segmenter("efficientnet_lite0", "none", CLASSES, head).eval()
    file = tmp_path / "net.safetensors"
    save_file(net.state_dict(), file, net.metadata())
    again = load_segmenter(file)
    assert (again.classes, again.kind, again.backbone) == (CLASSES, head, "efficientnet_lite0")
    images = torch.randn(2, 3, 50, 67)
    with torch.no_grad():
        logits = net(images)
        assert logits.shape == (2, 3, -(-50 // stride), -(-67 // stride))
        assert torch.equal(again(images), logits)


def test_the_pyramid_is_the_sum_of_its_rates() -> None:
    torch.manual_seed(0)
    net = new_segmenter("efficientnet_lite0", "none", CLASSES, "v2").double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        deep = images
        for stage in net.stages:
            deep = stage(deep)
        expected = sum(
            F.conv2d(deep, branch.weight, branch.bias, padding=rate, dilation=rate)
            for rate, branch in zip((6, 12, 18, 24), net.head.branches, strict=True)
        )
        close(net(images), expected)


def test_probabilities_are_the_mean_of_the_views() -> None:
    torch.manual_seed(0)
    net = new_segmenter("efficientnet_lite0", "none", CLASSES, "v2").eval()
    image = torch.randint(256, (3, 40, 56), dtype=torch.uint8)
    view = ((image / 255 - 0.5) / 0.5)[None]
    expected = []
    with torch.no_grad():
        for size, mirrored in (((40, 56), False), ((40, 56), True), ((60, 84), False), ((60, 84), True)):
            scaled = F.interpolate(view, size, mode="bilinear", align_corners=False)
            logits = net(scaled.flip(-1)).flip(-1) if mirrored else net(scaled)
            expected.append(F.interpolate(logits, (40, 56), mode="bilinear", align_corners=False)[0].softmax(0))
    close(net.probabilities(image, (1.0, 1.5)), torch.stack(expected).mean(0))
    close(net.probabilities(image, (1.0,), flip=False), expected[0])


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="head is 'v4'; wanted v2 or v3plus"):
        new_segmenter("efficientnet_lite0", "none", CLASSES, "v4")
    with pytest.raises(UsageError, match="no class names came"):
        new_segmenter("efficientnet_lite0", "none", ())
    with pytest.raises(UsageError, match="squeezenet1_1: its five stages are not known"):
        new_segmenter("squeezenet1_1", "none", CLASSES)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="names no backbone, head and classes; wanted a file of train-segmenter"):
        load_segmenter(tmp_path / "other.safetensors")
