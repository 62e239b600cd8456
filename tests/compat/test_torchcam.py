"""AdvCAM in the place of torchcam's extractors: beside the real package."""

from __future__ import annotations

import pytest
import torch
from compat_nets import pictures, small_net
from torch import nn

import advcam_fast as af
from advcam_fast.compat.torchcam import AdvCAM

methods = pytest.importorskip("torchcam.methods")
PLAIN = af.ClimbConfig(steps=1, scales=(1.0,), flip=False)


def stretched(maps: torch.Tensor) -> torch.Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low)).nan_to_num(0)


@pytest.mark.parametrize("classes", [[4, 0, 2], 4])
def test_without_a_climb_it_is_the_packages_grad_cam(classes: list[int] | int) -> None:
    net, images = small_net(), pictures().float() / 255
    with methods.GradCAM(net, "3") as extractor:
        wanted = extractor(classes, net(images))[0]
    wanted = nn.functional.interpolate(wanted[None], (48, 64), mode="bilinear", align_corners=False)[0]
    with AdvCAM(net, "3", PLAIN) as extractor:
        found = extractor(classes, net(images))
    assert len(found) == 1 and found[0].shape == (3, 48, 64)
    assert torch.allclose(found[0], stretched(wanted), atol=1e-5)
    assert float(found[0].max()) == 1, "maps of nothing prove nothing"


def test_the_last_input_is_climbed_and_the_hook_goes() -> None:
    net, images = small_net(), pictures().float() / 255
    with AdvCAM(net, net[3], "fast") as extractor:
        net(images[:1])
        net(images[1:2])
        found = extractor(0)[0]
        net(images[:1])
        other = extractor(0)[0]
    assert not net._forward_pre_hooks
    assert not torch.allclose(found, other, atol=0.01)
    again = AdvCAM(net, "3", "fast")
    net(images[1:2])
    assert torch.equal(again([0])[0], found)
    again.remove_hooks()


def test_what_does_not_fit_is_named() -> None:
    net = small_net()
    with pytest.raises(af.UsageError, match="no input came, wanted is a forward pass"), AdvCAM(net, "3") as extractor:
        extractor(0)
    with pytest.raises(af.UsageError, match="no layer '33'; did you mean 3"), AdvCAM(net, "33") as extractor:
        net(pictures(1).float())
        extractor(0)
    with AdvCAM(net, "3") as extractor:
        net(pictures(2).float())
        with pytest.raises(af.UsageError, match=r"classes: torch.int64 \[3\] came, wanted is torch.int64 \[2\]"):
            extractor([0, 1, 2])
        with pytest.raises(af.UsageError, match="class 6 came"):
            extractor(6)
