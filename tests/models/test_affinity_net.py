"""AffinityNet: sizes, what is frozen, the files that load, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tolerances import close
from torch import Tensor, nn

from advcam_fast.errors import UsageError
from advcam_fast.models.affinity_net import AffinityNet, load_affinity_net, new_affinity_net
from advcam_fast.models.load import load_model

CHANNELS = (4, 6, 8, 10, 12)


def small_net(dtype: torch.dtype = torch.float32) -> AffinityNet:
    """Five stages of one 3x3 convolution each, with a BatchNorm in the first."""
    torch.manual_seed(0)
    layers = []
    for before, after, stride in zip((3, *CHANNELS), CHANNELS, (4, 1, 2, 2, 1), strict=False):
        layers.append(nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()))
    return AffinityNet(layers, CHANNELS).to(dtype)


@pytest.fixture(scope="module")
def resnet() -> AffinityNet:
    torch.manual_seed(0)
    net = new_affinity_net("none")
    net.mean_shift.running_mean.copy_(torch.tensor([0.5, -1.5]))
    return net


def released(net: AffinityNet, *, older: bool = False, resnet: bool = False) -> dict[str, Tensor]:
    """The keys of the released code: a stage is a Sequential of its layer, and everything is there more than once."""
    state = {}
    for key, tensor in net.state_dict().items():
        stage, rest = key.split(".", 1)
        if stage in ("stage2", "stage3", "stage4", "stage5"):
            state[f"resnet50.layer{int(stage[5]) - 1}.{rest}"] = tensor
            if not resnet:
                state |= {f"{stage}.0.{rest}": tensor, f"backbone.{int(stage[5]) - 1}.0.{rest}": tensor}
        elif stage == "stage1":
            name = rest.replace("0.", "conv1.", 1) if rest.startswith("0.") else rest.replace("1.", "bn1.", 1)
            state[f"resnet50.{name}"] = tensor
            if not resnet:
                state[key] = tensor
        elif stage == "mean_shift":
            if not older:
                state[key] = tensor
            state["fc_dp7.4.running_mean"] = tensor
            state |= {"fc_dp7.4.running_var": tensor, "fc_dp7.4.num_batches_tracked": torch.tensor(3)} if older else {}
        else:
            state |= {key: tensor, f"edge_layers.0.{rest}": tensor}
    return state | {"path_indices0": torch.zeros(1, 2, 3), "ind_from": torch.zeros(4), "disp_target": torch.zeros(1)}


def same(one: AffinityNet, other: AffinityNet) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in one.state_dict().items() if "tracked" not in key)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 5), (33, 47), (65, 66), (40, 97)])
def test_odd_sizes(height: int, width: int) -> None:
    boundary, displacement = small_net()(torch.randn(2, 3, height, width))
    h, w = math.ceil(height / 4), math.ceil(width / 4)
    assert (boundary.shape, displacement.shape) == ((2, h, w), (2, 2, h, w))


def test_resnet_stages_have_the_strides_of_irn(resnet: AffinityNet) -> None:
    shapes = [tuple(each.shape[1:]) for each in resnet.features(torch.randn(1, 3, 65, 50))]
    assert shapes == [(64, 17, 13), (256, 17, 13), (512, 9, 7), (1024, 5, 4), (2048, 5, 4)]
    boundary, displacement = resnet(torch.randn(1, 3, 65, 50))
    assert (boundary.shape, displacement.shape) == ((1, 17, 13), (1, 2, 17, 13))


def test_heads_are_those_of_the_paper(resnet: AffinityNet) -> None:
    """Layer by layer, from the functions that the layers stand for."""
    images = torch.randn(1, 3, 34, 45)
    x1, x2, x3, x4, x5 = resnet.features(images)
    state = resnet.state_dict()

    def block(x: Tensor, name: str, groups: int, up: int, size: tuple[int, ...]) -> Tensor:
        x = nn.functional.conv2d(x, state[f"{name}.0.weight"])
        x = nn.functional.group_norm(x, groups, state[f"{name}.1.weight"], state[f"{name}.1.bias"])
        x = nn.functional.interpolate(x, scale_factor=up, mode="bilinear", align_corners=False) if up > 1 else x
        return x.relu()[..., : size[0], : size[1]]

    size, coarse = tuple(x2.shape[2:]), tuple(x3.shape[2:])
    stages = zip((x1, x2, x3, x4, x5), (1, 1, 2, 4, 4), strict=True)
    edges = [block(x, f"fc_edge{k}", 4, up, size) for k, (x, up) in enumerate(stages, 1)]
    logits = nn.functional.conv2d(torch.cat(edges, 1), state["fc_edge6.weight"], state["fc_edge6.bias"])
    deep = [block(x, f"fc_dp{k}", 16, up, coarse) for k, x, up in ((3, x3, 1), (4, x4, 2), (5, x5, 2))]
    wide = [block(x1, "fc_dp1", 8, 1, size), block(x2, "fc_dp2", 16, 1, size)]
    wide.append(block(torch.cat(deep, 1), "fc_dp6", 16, 2, size))
    raw = nn.functional.conv2d(block(torch.cat(wide, 1), "fc_dp7", 16, 1, size), state["fc_dp7.3.weight"])
    with torch.no_grad():
        boundary, displacement = resnet.eval()(images)
        close(boundary, logits[:, 0])
        close(displacement, raw - torch.tensor([0.5, -1.5]).view(2, 1, 1))
        close(resnet.train()(images)[1], raw)


def test_only_the_heads_learn() -> None:
    net = small_net().requires_grad_()  # the stages too: they stay as they are
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    net.train()
    assert not any(stage.training for each in net.stages for stage in each.modules())
    boundary, displacement = net(torch.randn(2, 3, 32, 32))
    (boundary.sum() + displacement.square().sum()).backward()
    learning = {name for name, tensor in net.named_parameters() if tensor.grad is not None}
    assert learning == {name for name, _ in net.named_parameters() if name.startswith("fc_")}
    assert len(net.boundary_parameters()) == 17 and len(net.displacement_parameters()) == 22
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_predict_averages_the_boundary_of_image_and_mirror() -> None:
    net = small_net(torch.float64)
    net.mean_shift.running_mean.copy_(torch.tensor([3.0, 4.0]))
    image = torch.randint(0, 256, (3, 30, 41), dtype=torch.uint8)
    boundary, displacement = net.train().predict(image, canvas=48)
    assert net.training and (boundary.shape, displacement.shape) == ((8, 11), (2, 8, 11))
    padded = torch.zeros(2, 3, 48, 48, dtype=torch.float64)  # 0 is the mean colour
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (net.mean, net.std))
    plain = ((image.permute(1, 2, 0).double() / 255 - mean) / std).permute(2, 0, 1)
    padded[0, :, :30, :41], padded[1, :, :30, :41] = plain, plain.flip(-1)
    with torch.no_grad():
        logits, field = net.eval()(padded)
    # the mirrored map is cropped where the mirrored image ends
    close(boundary, ((logits[0, :8, :11] + logits[1, :8, :11].flip(-1)) / 2).sigmoid())
    close(displacement, field[0, :, :8, :11])
    assert not torch.allclose(net.predict(image, canvas=None)[0], boundary)


def test_predict_takes_images_larger_than_the_canvas() -> None:
    image = torch.randint(0, 256, (3, 70, 9), dtype=torch.uint8)
    assert small_net().predict(image, canvas=32)[0].shape == (18, 3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_own_files_come_back(tmp_path: Path, resnet: AffinityNet, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(resnet.state_dict(), path)
    loaded = load_affinity_net(path)
    assert same(resnet, loaded) and not loaded.training


@pytest.mark.parametrize(
    ("backbone", "strides", "mean"), [("efficientnet_lite0", (8, 16, 32), 0.5), ("resnet18", (8, 16, 32), 0.485)]
)
def test_a_file_names_its_backbone(tmp_path: Path, backbone: str, strides: tuple[int, ...], mean: float) -> None:
    net = new_affinity_net("none", backbone)
    save_file(net.state_dict(), tmp_path / "net.safetensors", {"backbone": backbone})
    loaded = load_affinity_net(tmp_path / "net.safetensors")
    assert same(net, loaded) and loaded.backbone == backbone
    assert loaded.mean[0] == mean
    features = loaded.features(torch.zeros(1, 3, 64, 96))
    assert [64 // each.shape[-2] for each in features] == [4, 4, *strides]
    whole = load_model(backbone, "none", num_classes=1)
    assert isinstance(whole.features, nn.Module)
    own = [tensor for stage in net.stages for tensor in stage.state_dict()]
    left_out = {"network.conv_head", "network.bn2"} if backbone == "efficientnet_lite0" else set()
    kept = [key for key in whole.features.state_dict() if ".".join(key.split(".")[:2]) not in left_out]
    assert len(own) == len([key for key in kept if not key.startswith("network.classifier")])
    save_file(net.state_dict(), tmp_path / "nameless.safetensors")
    with pytest.raises(UsageError, match=r"stage.* wanted"):
        load_affinity_net(tmp_path / "nameless.safetensors")


@pytest.mark.parametrize("layout", [{}, {"older": True}, {"resnet": True}])
def test_released_files_load(tmp_path: Path, resnet: AffinityNet, layout: dict[str, bool]) -> None:
    torch.save(released(resnet, **layout), tmp_path / "res50_irn.pth")
    assert same(resnet, load_affinity_net(tmp_path / "res50_irn.pth"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("fc_edge3.1.weight"), r"fc_edge3\.1\.weight \[32\] is missing"),
        (lambda state: state.pop("mean_shift.running_mean"), r"mean_shift\.running_mean \[2\] is missing"),
        (lambda state: state.pop("fc_edge6.bias"), r"fc_edge6\.bias \[1\] is missing"),
        (lambda state: state.update({"stage5.0.conv1.weight": torch.zeros(3)}), r"stage5\.0\.conv1\.weight is \[3\]"),
        (lambda state: state.update({"fc_dp8.0.weight": torch.zeros(2)}), r"fc_dp8\.0\.weight \[2\] has no place"),
        (lambda state: state.update({"fc_edge6.bias": torch.tensor([math.nan])}), r"fc_edge6\.bias holds NaN"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, resnet: AffinityNet, change: Callable[[dict[str, Tensor]], None], reason: str
) -> None:
    state = dict(resnet.state_dict())
    change(state)
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(UsageError, match=rf"net\.safetensors: {reason}"):
        load_affinity_net(tmp_path / "net.safetensors")


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_affinity_net(tmp_path / "absent.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UsageError, match="pickled code is never run"):
        load_affinity_net(tmp_path / "module.pth")


@pytest.mark.parametrize(
    ("stages", "channels", "strides", "reason"),
    [
        (4, CHANNELS, (4, 4, 8, 16, 16), "4 stages, 5 channels and 5 strides came; wanted five of each"),
        (5, CHANNELS, (2, 4, 8, 16, 32), r"strides are \(2, 4, 8, 16, 32\); wanted 4, 4"),
        (5, CHANNELS, (4, 4, 8, 12, 16), r"strides are .*; wanted 4, 4"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    stages: int, channels: tuple[int, ...], strides: tuple[int, ...], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        AffinityNet([nn.Identity() for _ in range(stages)], channels, strides)


@pytest.mark.parametrize(("stride", "came"), [((2, 1), r"\[8, 16\]"), ((1, 2), r"\[16, 8\]")])
def test_a_stage_of_another_stride_is_refused(stride: tuple[int, int], came: str) -> None:
    net = small_net()
    net.stage5 = nn.Sequential(nn.Conv2d(10, 12, 1, stride=stride))
    with pytest.raises(UsageError, match=rf"a stage gives {came} pixels at its stride; wanted \[16, 16\] or more"):
        net(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 0)])
def test_images_that_do_not_fit_are_refused(images: Tensor) -> None:
    with pytest.raises(UsageError, match=r"images are .*; wanted normalised floats \[B, 3, H, W\]"):
        small_net()(images)
    with pytest.raises(UsageError, match=r"wanted torch\.uint8"):
        small_net().predict(images)
