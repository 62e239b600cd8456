"""Any classifier at all as the climb sees it: its logits, and the output of one of its layers as the activation."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcam_fast.errors import UsageError, first_line
from advcam_fast.models.cam_model import Classifier, first_nonfinite
from advcam_fast.models.frozen import refuse_batch_statistics

Accumulate = Callable[[Any], Tensor]
WANTED = "wanted are maps [B, K, h, w] or [B, h, w, K], or tokens [B, T, K]"


class Seen(NamedTuple):
    """One forward pass, with its graph."""

    raw: Tensor  # the layer's output as it came: gradients are taken with respect to it
    logits: Tensor  # [B, C]
    maps: Tensor | None  # [B, C, h', w']: what is accumulated instead of the CAM


class LayerTap(nn.Module):
    """A network that hands out one layer's output with its logits; `executor` says so in words, for the log."""

    ragged = False  # one size at a time
    bytes_per_pixel: float | None = None  # not known: the part behind the layer does not grow with the image

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        num_classes: int,
        tokens: int | None = None,
        channels_last: bool | None = None,
        input_size: tuple[int, int] | None = None,
        accumulate: Accumulate | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.layer = layer
        self.num_classes = num_classes
        self.prefixes = _prefixes(network) if tokens is None else (tokens,)
        self.channels_last = channels_last
        self.input_size = input_size
        self.accumulate = accumulate
        self.executor = f"autograd Grad-CAM at {layer}"

    def forward(self, images: Tensor) -> Seen:  # [B, 3, H, W]
        """Raises RuntimeError for a size that the network cannot take, UsageError for a layer that makes no map."""
        if self.input_size is not None:
            images = F.interpolate(images, self.input_size, mode="bilinear", align_corners=False)
        outputs: list[Tensor] = []
        hook = self.network.get_submodule(self.layer).register_forward_hook(
            lambda _layer, _inputs, output: self._tapped(outputs, output)
        )
        try:
            result = self.network(images)
        except AssertionError as error:  # how timm and torchvision refuse a size: one image's trouble, not the run's
            raise RuntimeError(f"{first_line(error)} (images of {_size(images)})") from error
        finally:
            hook.remove()
        if len(outputs) != 1:
            raise UsageError(f"target layer {self.layer!r} is run {len(outputs)} times in a pass; wanted is once")
        logits, extra = result if self.accumulate is not None and _is_pair(result) else (result, None)
        if not isinstance(logits, Tensor) or logits.shape != (len(images), self.num_classes):
            raise UsageError(
                f"the network gives {_kind(logits)} for {len(images)} images; "
                f"wanted are logits [{len(images)}, {self.num_classes}]"
                + (", and with them what is to be accumulated" if self.accumulate is not None else "")
            )
        self._check_raw(outputs[0], images)
        return Seen(outputs[0], logits, self._maps(extra, images))

    def as_map(self, raw: Tensor, images: Tensor) -> Tensor:
        """The layer's output, or a gradient of its shape, as maps [B, K, h, w]; the images tell a grid's sides."""
        sides = self.input_size or (int(images.shape[-2]), int(images.shape[-1]))
        if raw.ndim == 3:
            prefix, rows, columns = _token_grid(int(raw.shape[1]), sides, self.prefixes, self.layer)
            return raw[:, prefix:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        last = self.channels_last
        if last is None:
            last = _is_channels_last((int(raw.shape[1]), int(raw.shape[2]), int(raw.shape[3])), sides, self.layer)
        return raw.permute(0, 3, 1, 2) if last else raw

    def _tapped(self, outputs: list[Tensor], output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise UsageError(f"target layer {self.layer!r} gives {_kind(output)}; {WANTED}")
        if torch.is_grad_enabled() and not output.requires_grad:
            output = output.detach().requires_grad_()  # the last map: only what follows the layer needs a graph
        outputs.append(output)
        return output.clone()  # what follows may write in place

    def _check_raw(self, raw: Tensor, images: Tensor) -> None:
        if raw.ndim not in (3, 4) or len(raw) != len(images) or raw.numel() == 0:
            came = f"{_kind(raw)} for {len(images)} images of {_size(images)}"
            raise UsageError(f"target layer {self.layer!r} gives {came}; {WANTED}")

    @torch.no_grad()
    def _maps(self, extra: Any, images: Tensor) -> Tensor | None:
        if self.accumulate is None:
            return None
        maps = self.accumulate(extra)
        if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[:2] != (len(images), self.num_classes):
            raise UsageError(
                f"accumulate gives {_kind(maps)}; wanted are maps [{len(images)}, {self.num_classes}, h, w]"
            )
        return maps.detach()


class GradCamModel(Classifier):
    """A whole classifier and one layer of it: the CAM is the Grad-CAM of that layer, whatever follows it.

    With A_n [K, h, w] the layer's output for the members n of a flip pair and y_c the logit of the class:

        a_k,n = h w sum_p dy_c,n / dA_k,n(p) / #{positive entries of dy_c / dA in the pair}
        cam_n = relu(sum_k a_k,n A_k,n),  R = cam_0 + flip(cam_1)

    so that a linear head over the average of A gives the CAM of CamModel where its logit maps are positive. The climbed
    score is the logit itself: ClimbConfig.score is not used. dtype "mixed" is not to be had.

    network: [B, 3, H, W] -> logits [B, C], B images independent of each other; a frozen copy of it is kept, in eval
    mode. target_layer: the dotted name of a module (`available_layers(network)`) that is run once and gives A:
    [B, K, h, w]; [B, h, w, K], told apart by the image's sides, or by channels_last=; or tokens [B, T, K] on a patch
    grid of the image's shape. tokens: how many of them come before the patches (CLS, registers); None: found out. In a
    ViT take a layer before the last attention ("blocks.11.norm1", "encoder.layers.encoder_layer_11.ln_1"): after it
    the class token alone has a gradient. input_size: (rows, columns) for networks of one size; images of all sizes are
    resized to it bilinearly, with the gradient through it. mean, std, class_names, activation: as in CamModel.

    accumulate: climbs one map and accumulates another, as SEAM needs it. The network then returns a pair (logits,
    extra), and accumulate(extra) gives the maps [B, C, h', w'] that are summed: relu of the label's own channel, both
    flips; R only regularises. Modules belong in the network, where they follow its device and dtype. Example, for a
    SEAM network `net` whose cam head is `fc8`:

        class Seam(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net

            def forward(self, images):
                cam, features = self.net.cam_and_features(images)  # before upsampling and PCM
                return cam.mean((2, 3)), self.net.PCM(cam, features)

        GradCamModel(Seam(net), "net.fc8", accumulate=lambda refined: refined, num_classes=20, mean=..., std=...)

    Raises UsageError for an unknown layer (naming near ones), weights that are NaN or infinite, a BatchNorm that would
    use the batch, and names or numbers that do not fit; at the first image, for a layer whose output is no map.
    Source: Selvaraju et al., ICCV 2017; Lee et al., CVPR 2021, with the released code's scalings.
    """

    features: LayerTap

    def __init__(
        self,
        network: nn.Module,
        target_layer: str,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        class_names: Sequence[str] | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        tokens: int | None = None,
        channels_last: bool | None = None,
        input_size: tuple[int, int] | None = None,
        accumulate: Accumulate | None = None,
        name: str = "custom",
    ) -> None:
        _check_network(network, target_layer)
        if num_classes < 1:
            raise UsageError(f"num_classes is {num_classes}; wanted 1 or more")
        if tokens is not None and tokens < 0:
            raise UsageError(f"tokens is {tokens}; wanted is the number of tokens before the patches, 0 or more")
        if input_size is not None and (len(input_size) != 2 or min(input_size) < 1):
            raise UsageError(f"input_size is {input_size}; wanted is (rows, columns)")
        frozen = copy.deepcopy(network).eval().requires_grad_(False)
        tap = LayerTap(frozen, target_layer, num_classes, tokens, channels_last, input_size, accumulate)
        super().__init__(tap.eval(), num_classes, mean, std, class_names, activation, name)
        self.target_layer = target_layer

    @property
    def num_classes(self) -> int:
        return self.features.num_classes

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GradCamModel:
        """Moves the network in place and returns the model."""
        self.features.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities: uint8 [B, 3, H, W] -> [B, C], softmax or sigmoid of the network's logits."""
        seen: Seen = self.features(self.normalise(images).to(self.reference.dtype))
        return self._probabilities(seen.logits)


def available_layers(network: nn.Module) -> list[str]:
    """Every name that GradCamModel's target_layer may have, in the network's order."""
    return [name for name, _ in network.named_modules() if name]


def _check_network(network: nn.Module, layer: str) -> None:
    if not isinstance(network, nn.Module):
        raise UsageError(f"network is a {type(network).__name__}; wanted a torch.nn.Module [B,3,H,W] -> [B,C]")
    names = available_layers(network)
    if layer not in names:
        near = difflib.get_close_matches(layer, names)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        kinds = dict.fromkeys(re.sub(r"\d+", "#", name) for name in names)  # a network may have hundreds of layers
        raise UsageError(f"the network has no layer {layer!r}; {hint}there are, # for a number: {', '.join(kinds)}")
    refuse_batch_statistics(network)
    if (bad := first_nonfinite(network.state_dict())) is not None:
        raise UsageError(f"{bad} holds NaN or infinite values; all weights must be finite")


def _prefixes(network: nn.Module) -> tuple[int, ...] | None:
    """How many tokens may come before the patches, the likeliest first; None where the network does not say it."""
    for module in network.modules():
        if isinstance(number := getattr(module, "num_prefix_tokens", None), int):
            return number, 0  # timm's; in some networks they come after the first layers
    return None


@lru_cache(maxsize=4096)
def _token_grid(
    count: int, sides: tuple[int, int], prefixes: tuple[int, ...] | None, layer: str
) -> tuple[int, int, int]:
    """(tokens before the patches, rows, columns) of `count` tokens over an image of these sides.

    prefixes: the numbers before the patches to be tried, the first that fits is right; None: 0 or 1, as only one fits.
    """
    height, width = sides
    found = []
    for before in prefixes or (0, 1):
        patches = count - before
        grids = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
        found += [(before, *grid) for grid in grids if _is_grid(*grid, sides)]  # one at most: brute force finds no more
    if not found or (prefixes is None and len(found) > 1):
        why = "could be more than one patch grid" if found else "are no patch grid"
        known = "" if prefixes is None else f" after {prefixes[0]} others"
        advice = "is tokens= right?" if prefixes else "say tokens=, the number before the patches"
        raise RuntimeError(
            f"target layer {layer!r}: {count} tokens{known} {why} of an image of {height} x {width}; {advice}"
        )
    return found[0]


@lru_cache(maxsize=4096)
def _is_channels_last(shape: tuple[int, int, int], sides: tuple[int, int], layer: str) -> bool:
    """Whether an output [B, *shape] is [B, h, w, K]: its first two sides are then those of a patch grid."""
    first, second, third = shape
    if not _is_grid(first, second, sides):
        return False
    if _is_grid(second, third, sides, slack=2):  # convolutions without padding lose a little
        raise RuntimeError(
            f"target layer {layer!r}: {list(shape)} could be [K, h, w] or [h, w, K] for an image of "
            f"{sides[0]} x {sides[1]}; say channels_last=True or False"
        )
    return True


def _is_grid(rows: int, columns: int, sides: tuple[int, int], slack: int = 0) -> bool:
    """Whether patches of some side, the last ones filled up or all of them left out, make these rows and columns."""
    height, width = sides
    return any(
        abs(rows - -(-(height - cut) // patch)) <= slack and abs(columns - -(-(width - cut) // patch)) <= slack
        for patch in range(1, max(sides) + 1)
        for cut in (0, patch - 1)  # -(-a // b): rounded up; less b - 1: down
    )


def _is_pair(result: Any) -> bool:
    return isinstance(result, tuple) and len(result) == 2


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]} x {images.shape[-1]}"
