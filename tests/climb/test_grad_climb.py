"""The climb by autograd Grad-CAM against a one-by-one loop written here from the method's description alone."""

import copy
import dataclasses
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

sys.path.insert(0, str(Path(__file__).parent))
from networks import MEAN, STD, photo, tensor, tiny

from advcam_fast import ClimbConfig, GradCamModel, UsageError, compute_maps
from advcam_fast.climb import MapMaker
from advcam_fast.climb.grad_climber import GradClimber

PAPER = ClimbConfig.preset("voc-cvpr2021")
PAPER64 = dataclasses.replace(PAPER, dtype="fp64", scales=(1.0,), steps_at_scale={}, steps=6)


class Average(nn.Module):
    def forward(self, maps):
        return maps.mean((2, 3))


def convolutional(head):
    return nn.Sequential(OrderedDict(features=tiny().features, pool=Average(), head=head)).eval()


def linear():
    torch.manual_seed(1)
    return convolutional(nn.Linear(24, 5)), "features", lambda raw: raw


def nonlinear():
    torch.manual_seed(2)
    head = nn.Sequential(nn.Linear(24, 16), nn.ReLU(inplace=True), nn.Linear(16, 5))
    for layer in (head[0], head[2]):
        nn.init.normal_(layer.weight, 0.1, 0.2)  # more positive than not, so that no class has an empty map
    return convolutional(head), "features", lambda raw: raw


def random_weights(network):
    torch.manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    return network.eval()


def torchvision_vit():
    network = VisionTransformer(32, 8, 2, 2, 12, 24, num_classes=5)
    return (
        random_weights(network),
        "encoder.layers.encoder_layer_1.ln_1",
        lambda raw: raw[:, 1:].reshape(len(raw), 4, 4, 12).permute(0, 3, 1, 2),
    )


def timm_vit():
    """At 32 x 64: 2 x 4 patches after a class token and two registers."""
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=12, num_heads=2, num_classes=5, reg_tokens=2,
        dynamic_img_size=True,
    )  # fmt: skip
    return random_weights(network), "blocks.1.norm1", lambda raw: raw[:, 3:].reshape(len(raw), 2, 4, 12).movedim(3, 1)


def torchvision_swin():
    """Channels last: 8 x 4 patches."""
    network = SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=5)
    return random_weights(network), "features.3", lambda raw: raw.movedim(3, 1)


SIZES = {
    linear: (30, 41),
    nonlinear: (30, 41),
    torchvision_vit: (32, 32),
    timm_vit: (32, 64),
    torchvision_swin: (64, 32),
}


def model_of(network, layer, **options):
    return GradCamModel(network, layer, **({"num_classes": 5, "mean": MEAN, "std": STD} | options))


def one_by_one(case, image, labels, config, accumulate=None):
    """(sum of the accumulated maps, the first of them, max|g| of every step) of one image and the class labels[0]."""
    network, layer, as_map = case
    network = copy.deepcopy(network).double()
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    kept = []
    network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    x = ((image.double() / 255 - mean) / std)[None]
    x = torch.cat([x, x.flip(-1)])
    v = torch.zeros_like(x)
    label, *others = labels
    subtracted = {"all": [k for k in range(5) if k != label], "present": others, "none": []}[config.other_classes]
    first = None
    maps, slopes = [], []
    for step in range(config.steps):
        x = x.detach().requires_grad_()
        kept.clear()
        y = network(x)
        y, extra = y if accumulate else (y, None)
        activation = kept[0]
        (slope,) = torch.autograd.grad(y[:, label].sum(), activation, retain_graph=True)
        slope, activation = as_map(slope), as_map(activation)
        count = max(int((slope > 0).sum()), 1)
        cams = []
        for n in range(2):
            a = slope[n].shape[1] * slope[n].shape[2] * slope[n].sum((1, 2)) / count
            cams.append((a[:, None, None] * activation[n]).sum(0).relu())
        r = cams[0] + cams[1].flip(-1)
        first = r.detach() if first is None else first
        own = accumulate(extra)[:, label].detach().relu() if accumulate else None
        maps.append(r.detach() if own is None else own[0] + own[1].flip(-1))
        if step == config.steps - 1:
            break
        mask = r.detach() > config.mask_threshold * r.detach().max()
        objective = y[:, label].sum() - y[:, subtracted].sum()
        objective = objective - config.suppression * (r - first).abs()[mask].sum()
        (g,) = torch.autograd.grad(objective, x)
        slopes.append(g.abs().max())
        v = config.momentum * v + g / g.abs().sum()
        g = v if config.momentum else g
        x = x.detach()
        x = (x + config.step_size * g / (g.abs().max() + 1e-12)).clamp(x.min().item(), x.max().item())
    return torch.stack(maps).sum(0), maps[0], torch.stack(slopes)


def assert_near(got, want, limit=1e-9):
    assert got.shape == want.shape
    assert want.any(), "zeros would prove nothing"
    error = ((got.double() - want).abs().max() / want.abs().max()).item()
    assert error <= limit, f"relative error {error:.1e}"


@pytest.mark.parametrize("max_pairs", [1, 3, 64])
@pytest.mark.parametrize("make", SIZES)
def test_whole_climbs_equal_the_loop_whatever_the_batch(make, max_pairs):
    case, size = make(), SIZES[make]
    images = torch.stack([tensor(photo(*size, seed)) for seed in (1, 2)])
    labels = torch.tensor([[0, 3], [4, 1]])
    climber = GradClimber(model_of(*case[:2]), PAPER64)
    done = climber.climb(images, labels, PAPER64.steps, max_pairs)
    for v in range(2):
        for i, label in enumerate(labels[v].tolist()):
            total, initial, slopes = one_by_one(case, images[v], [label], PAPER64)
            assert_near(done.total[v, i], total)
            assert_near(done.initial[v, i], initial)
            assert_near(done.steepest[v, i], slopes)


@pytest.mark.parametrize(
    "change",
    [
        dict(other_classes="present"),
        dict(other_classes="none", suppression=0.0),
        dict(mask_threshold=0.2, suppression=200.0),
        dict(step_size=0.3),
        dict(momentum=0.5),
        dict(steps=2),
    ],
    ids=str,
)
def test_every_setting_against_the_loop(change):
    config, case, image = dataclasses.replace(PAPER64, **change), nonlinear(), tensor(photo(30, 41))
    done = GradClimber(model_of(*case[:2]), config).climb(image[None], torch.tensor([[2, 0, 4]]), config.steps, 2)
    for i, order in enumerate(([2, 0, 4], [0, 2, 4], [4, 2, 0])):
        total, initial, slopes = one_by_one(case, image, order, config)
        assert_near(done.total[0, i], total)
        assert_near(done.initial[0, i], initial)
        assert_near(done.steepest[0, i], slopes)


def test_a_positive_linear_head_gives_the_maps_of_cam_model_at_all_scales():
    """The closed form of the method is this Grad-CAM where no logit is cut off: factor, scales and merging agree."""
    config = dataclasses.replace(PAPER64, scales=(0.5, 1.0, 1.5), steps_at_scale={0.5: 3}, score="mean")
    closed = tiny()
    closed.class_weights.abs_()
    head = nn.Linear(24, 5)
    head.weight.data.copy_(closed.class_weights)
    whole = nn.Sequential(OrderedDict(features=closed.features, pool=Average(), head=head)).eval()
    images, labels = [tensor(photo(30, 41)), tensor(photo(13, 22, 5))], [[1, 3], [2]]
    wanted = compute_maps(closed, images, labels, config)
    for got, want in zip(compute_maps(model_of(whole, "features"), images, labels, config), wanted, strict=True):
        for name in ("strided", "full", "initial"):
            assert_near(getattr(got, name), getattr(want, name))
        assert got.flags == want.flags == ()


def test_one_forward_pass_for_all_labels_of_step_zero_and_no_backward_after_the_last_map():
    climber = GradClimber(model_of(*linear()[:2]), PAPER64)
    passes = []
    climber.features.register_forward_pre_hook(
        lambda _m, inputs: passes.append((len(inputs[0]), inputs[0].requires_grad))
    )
    climber.climb(tensor(photo(30, 41))[None], torch.tensor([[1, 2]]), 3, 1)
    assert passes == [(2, True), *[(2, True), (2, False)] * 2]
    passes.clear()
    climber.climb(tensor(photo(30, 41))[None], torch.tensor([[1, 2]]), 1, 1)
    assert passes == [(2, False)]


def test_without_flip_the_map_is_that_of_one_image():
    case = linear()
    config = dataclasses.replace(PAPER64, flip=False, steps=1)
    done = GradClimber(model_of(*case[:2]), config).climb(tensor(photo(32, 48))[None], torch.tensor([[1]]), 1, 1)
    network = copy.deepcopy(case[0]).double()
    x = model_of(*case[:2]).normalise(tensor(photo(32, 48))[None], torch.float64)
    weights = network.head.weight[1]
    cam = torch.einsum("k,khw->hw", weights, network.features(x)[0]).relu() / (weights > 0).sum()
    assert_near(done.total[0, 0], cam.detach())


class WithMaps(nn.Module):
    """As SEAM is: logits from the map before a last layer, which makes the map that is to be accumulated."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.features = tiny().features
        self.cam = nn.Conv2d(24, 5, 1, bias=False)
        self.refine = nn.ConvTranspose2d(5, 5, 4, 2, 1)

    def forward(self, images):
        maps = self.cam(self.features(images))
        return maps.mean((2, 3)), maps


@pytest.mark.parametrize("steps", [1, 5])
def test_climbs_one_map_and_accumulates_another(steps):
    network, config, image = WithMaps().eval(), dataclasses.replace(PAPER64, steps=steps), tensor(photo(30, 41))
    refine = copy.deepcopy(network.refine).double()
    model = model_of(network, "features", accumulate=lambda maps: refine(maps))
    done = GradClimber(model, config).climb(image[None], torch.tensor([[2, 4]]), steps, 1)
    case = (network, "features", lambda raw: raw)
    for i, label in enumerate((2, 4)):
        if steps > 1:
            total, initial, slopes = one_by_one(case, image, [label], config, refine)
            assert_near(done.total[0, i], total)
            assert_near(done.initial[0, i], initial)
            assert_near(done.steepest[0, i], slopes)
        assert done.total.shape == (1, 2, 16, 22)
    if steps == 1:
        assert torch.equal(done.total, done.initial)
    full = compute_maps(model, [image], [[2, 4]], config)[0].full
    assert full.shape == (2, 30, 41) and full.isfinite().all()


@pytest.mark.parametrize("max_pairs", [1, 64])
def test_a_class_without_any_gradient_is_flagged_and_the_others_are_what_they_were(max_pairs):
    network, layer, _ = nonlinear()
    network.head[2].weight.data[2] = 0
    config = dataclasses.replace(PAPER64, other_classes="none")
    maker = MapMaker(model_of(network, layer), config)
    maker.max_pairs = max_pairs
    images = [tensor(photo(30, 41)), tensor(photo(30, 41, 5))]
    results = maker.compute(images, [[1, 2], [0, 3]])
    assert set(results[0].flags) == {"zero_gradient:2", "no_positive_score:2"}
    assert not results[0].full[1].any() and results[0].full.isfinite().all()
    assert results[1].flags == ()
    assert_near(results[0].full[0], maker.compute(images[:1], [[1]])[0].full[0])
    assert_near(results[1].full, maker.compute(images[1:], [[0, 3]])[0].full)


@pytest.mark.parametrize("max_pairs", [1, 64])
def test_a_class_that_overflows_is_flagged_and_the_others_are_what_they_were(max_pairs):
    network, layer, _ = nonlinear()
    network = network.double()
    network.head[2].weight.data[2] = 1e308
    config = dataclasses.replace(PAPER64, other_classes="none")
    maker = MapMaker(model_of(network, layer), config)
    maker.max_pairs = max_pairs
    image = tensor(photo(30, 41))
    result = maker.compute([image], [[1, 2]])[0]
    assert result.flags == ("not_finite:2",)
    assert not result.full[1].any()
    assert_near(result.full[0], maker.compute([image], [[1]])[0].full[0])


class RootOfMean(nn.Module):
    """NaN for a dark image."""

    def forward(self, images):
        return images * (images.mean((1, 2, 3), keepdim=True) + 1.5).sqrt()


@pytest.mark.parametrize("max_pairs", [1, 64])
def test_an_image_that_becomes_nan_is_flagged_and_its_neighbours_are_what_they_were(max_pairs):
    inner, _, _ = nonlinear()
    network = nn.Sequential(RootOfMean(), inner)
    maker = MapMaker(model_of(network, "1.features"), PAPER64)
    maker.max_pairs = max_pairs
    images = [tensor(photo(30, 41)), torch.zeros(3, 30, 41, dtype=torch.uint8), tensor(photo(30, 41, 5))]
    results = maker.compute(images, [[1], [1], [0]])
    assert results[1].flags == ("not_finite:1",)
    assert not results[1].full.any()
    for index, label in ((0, 1), (2, 0)):
        assert results[index].flags == ()
        assert_near(results[index].full, maker.compute([images[index]], [[label]])[0].full)


def test_dtypes():
    case, image = nonlinear(), tensor(photo(40, 56))
    full = {}
    for dtype in ("fp64", "fp32", "bf16"):
        config = dataclasses.replace(PAPER64, dtype=dtype, steps=1)
        full[dtype] = compute_maps(model_of(*case[:2]), [image], [[1]], config)[0].full
    assert_near(full["fp32"], full["fp64"], 1e-4)
    assert 0 < (full["bf16"] - full["fp64"]).abs().max() < 0.1
    whole = compute_maps(model_of(*case[:2]), [image], [[1]], dataclasses.replace(PAPER64, dtype="bf16"))[0]
    assert whole.full.dtype == torch.float32 and whole.flags == ()
    with pytest.raises(UsageError, match=r"dtype mixed is not to be had with autograd Grad-CAM at features"):
        compute_maps(model_of(*case[:2]), [image], [[1]], dataclasses.replace(PAPER64, dtype="mixed"))


def test_compute_maps_picks_the_climber_and_sees_changed_weights():
    network, layer, _ = nonlinear()
    model, image = model_of(network, layer), tensor(photo(30, 41))
    assert MapMaker(model, PAPER64).executor == "autograd Grad-CAM at features"
    with torch.no_grad():
        before = compute_maps(model, [image], [[1]], PAPER64)[0].full
        model.features.network.head[0].weight.mul_(0.5).add_(0.01)
    assert not torch.equal(before, compute_maps(model, [image], [[1]], PAPER64)[0].full)
    with pytest.raises(UsageError, match="model is a Sequential; wanted is a CamModel or a GradCamModel"):
        MapMaker(network, PAPER64)


def test_a_network_of_one_size_takes_photos_of_any():
    network, layer, _ = torchvision_vit()
    config = dataclasses.replace(PAPER64, scales=(0.5, 1.0), steps=3)
    image = tensor(photo(45, 61))
    result = compute_maps(model_of(network, layer, input_size=(32, 32)), [image], [[1]], config)[0]
    assert result.full.shape == (1, 45, 61) and result.full.any() and result.flags == ()
    with pytest.raises(RuntimeError, match=r"Wrong image height.* \(images of 22 x 30\)"):
        compute_maps(model_of(network, layer), [image], [[1]], config)


def test_a_layer_that_the_logits_do_not_depend_on_is_refused():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)

        def forward(self, images):
            self.unused(images)
            return self.used(images).mean((2, 3))

    with pytest.raises(UsageError, match="target layer 'unused': the logits do not depend on its output"):
        compute_maps(model_of(Dead(), "unused"), [tensor(photo(9, 9))], [[1]], PAPER64)
