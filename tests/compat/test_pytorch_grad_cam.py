"""AdvCAM and GradCAM in the place of pytorch_grad_cam's: beside the real package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compat_nets import CLASSES, pictures, small_net
from torch import nn

import advcam_fast as af
from advcam_fast.compat.pytorch_grad_cam import AdvCAM, GradCAM

theirs = pytest.importorskip("pytorch_grad_cam")
Target = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget


def script(cam_class: type, net: nn.Module, images: torch.Tensor, targets: list | None) -> np.ndarray:
    """What people have written; only the class differs."""
    with cam_class(model=net, target_layers=[net[3]]) as cam:
        return cam(input_tensor=images, targets=targets)


@pytest.mark.parametrize("targets", [None, [Target(4), Target(0), Target(4)]])
def test_grad_cam_is_the_packages(targets: list | None) -> None:
    net, images = small_net(), pictures().float() / 255
    wanted = script(theirs.GradCAM, net, images, targets)
    found = script(GradCAM, small_net(), images, targets)
    assert found.shape == wanted.shape and found.dtype == np.float32
    assert np.abs(found - wanted).max() < 2e-5
    assert wanted.max() > 0.99 and wanted.std() > 0.05, "an even map proves nothing"


def test_adv_cam_is_that_of_compute_maps() -> None:
    net, images = small_net(), pictures()
    config = af.ClimbConfig.preset("voc-cvpr2021").with_settings(["scales=1", "steps=5", "other_classes=none"])
    model = af.GradCamModel(net, "3", num_classes=CLASSES, mean=(0, 0, 0), std=(1, 1, 1))
    whole = af.compute_maps(model, list(images), [[4], [0], [2]], config)
    found = AdvCAM(net, [net[3]], config=config).maps(images.float() / 255, [Target(4), Target(0), Target(2)])
    plain = AdvCAM(net, [net[3]], config=af.ClimbConfig(steps=1, scales=(1.0,)))
    assert not torch.allclose(found, plain.maps(images.float() / 255, [Target(4), Target(0), Target(2)]), atol=0.01)
    for ours, wanted in zip(found, whole, strict=True):
        full = wanted.full[0]  # 48 x 64 are multiples of 16: nothing is cropped
        assert torch.allclose(ours, (full - full.min()) / (full.max() - full.min()), atol=1e-5)


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    net, images = small_net(), pictures().float() / 255
    cam = AdvCAM(net, [net[3]], config="fast")
    together = cam.maps(images, [Target(1)] * 3)
    assert together.shape == (3, 48, 64) and float(together.min()) == 0 and float(together.max()) == 1
    for number in range(3):
        assert torch.equal(cam.maps(images[number : number + 1], [Target(1)])[0], together[number])


def test_the_network_is_left_as_it_was() -> None:
    net, images = small_net().train(), pictures(1).float() / 255
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    script(AdvCAM, net, images, [Target(0)])
    assert net.training and not net[3]._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_a_map_of_one_value_is_nothing() -> None:
    net = small_net()
    nn.init.zeros_(net[8].weight)
    assert float(GradCAM(net, [net[3]]).maps(pictures(1).float(), [Target(0)]).abs().max()) == 0


class Difference:
    """A target of two classes."""


@pytest.mark.parametrize(
    ("layers", "images", "targets", "text"),
    [
        ([1, 3], None, None, "target_layers: 2 came, wanted is one"),
        ([], None, None, "target_layers: 0 came, wanted is one"),
        ([nn.ReLU()], None, None, "the target layer, a ReLU, is no module of the network"),
        ([3], pictures(1), None, "images: torch.uint8 .* came, wanted are normalised floats"),
        ([3], torch.zeros(3, 8, 8), None, r"images: torch.float32 \[3, 8, 8\] came"),
        ([3], None, [Difference()], "targets: a Difference came, wanted are ClassifierOutputTargets"),
        ([3], None, [Target(6)], "class 6 came, the network has classes 0 to 5"),
        ([3], None, [Target(-1)], "class -1 came"),
        ([3], None, [Target(0), Target(1)], r"classes: torch.int64 \[2\] came, wanted is torch.int64 \[1\]"),
        ([5], None, None, "wanted are maps"),
    ],
)
def test_what_does_not_fit_is_named(layers: list, images: torch.Tensor | None, targets: list | None, text: str) -> None:
    net = small_net()
    with pytest.raises(af.UsageError, match=text):
        cam = AdvCAM(net, [net[one] if isinstance(one, int) else one for one in layers])
        cam(pictures(1).float() if images is None else images, targets)


def test_smoothing_is_not_done_silently() -> None:
    net = small_net()
    with pytest.raises(af.UsageError, match="aug_smooth and eigen_smooth came"):
        AdvCAM(net, [net[3]])(pictures(1).float(), aug_smooth=True)
