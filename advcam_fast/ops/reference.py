"""Every op in plain PyTorch: the oracle of the tests, the tutorial, and the fallback where no kernel was built.

Nothing here is fused or in place (climb_step apart, whose contract is to write its image), and all of it runs in the
dtype of its inputs: give float64 to get the reference that tests/tolerances.py measures against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advcam_fast.ops.reference_evaluate import component_boxes, refuse_faults, refuse_steps, threshold_sweep  # noqa: F401
from advcam_fast.ops.reference_walk import centroid_walk, color_walk, labels_at, random_walk  # noqa: F401


def _per_group(values: Tensor, like: Tensor, group_size: int) -> Tensor:
    """[groups] -> [B, 1, ...], each group's value repeated for its members."""
    return values.repeat_interleave(group_size).view(-1, *[1] * (like.ndim - 1))


def climb_step(
    image: Tensor,  # [B, ...], B = groups * group_size
    gradient: Tensor,  # like image
    step_size: float,
    group_size: int = 2,
    network_input: Tensor | None = None,  # like image, any float dtype
) -> Tensor:  # [groups]
    """x <- clamp(x + step g / (max|g| + 1e-12), min x, max x), the extrema over each group; returns max|g|."""
    groups = image.shape[0] // group_size
    if image.numel() == 0:
        return image.new_zeros(groups)
    ascent = gradient.to(image.dtype)
    largest = ascent.abs().reshape(groups, -1).amax(1)
    low, high = image.reshape(groups, -1).aminmax(dim=1)
    step = _per_group(step_size / (largest + 1e-12), image, group_size) * ascent
    low, high = _per_group(low, image, group_size), _per_group(high, image, group_size)
    image.copy_(torch.minimum(torch.maximum(image + step, low), high))
    if network_input is not None:
        network_input.copy_(image)
    return largest


def climb_loss(
    logit_map: Tensor,  # [B, C, h, w], B = groups * group_size
    target: Tensor,  # [groups], int64
    weight: Tensor,  # [groups, C]
    positive: Tensor,  # [groups]
    initial_map: Tensor | None = None,  # [groups, h, w]
    suppression: float = 0.0,
    mask_threshold: float = 0.5,
    rectify: bool = True,
    group_size: int = 2,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(objective [groups], gradient like logit_map, pair_map [groups, h, w], mask [groups, h, w], score [B, C])."""
    groups, pixels = logit_map.shape[0] // group_size, logit_map.shape[2] * logit_map.shape[3]
    each = torch.arange(groups, device=logit_map.device)
    z = logit_map if logit_map.dtype == torch.float64 else logit_map.float()
    z = z.unflatten(0, (groups, group_size))  # [groups, members, C, h, w]
    scored = z.relu() if rectify else z
    score = scored.mean((3, 4))  # y: [groups, members, C]

    own = z[each, :, target].relu()  # [groups, members, h, w]
    count = (own > 0).flatten(2).sum(2).to(z.dtype)  # P
    tiny = torch.finfo(z.dtype).tiny  # where nothing is positive, P and so f are 0
    share = (count / (positive * count.sum(1)).clamp(min=tiny)[:, None])[:, :, None, None]  # f
    cam = own * share
    pair_map = cam[:, 0] if group_size == 1 else cam[:, 0] + cam[:, 1].flip(-1)  # R
    mask = pair_map > mask_threshold * pair_map.amax((1, 2), keepdim=True)  # M
    difference = torch.zeros_like(pair_map) if initial_map is None else pair_map - initial_map
    penalty = (mask * difference.abs()).sum((1, 2))
    objective = (weight[:, None] * score).sum((1, 2)) - suppression * penalty

    slope = (weight / pixels)[:, None, :, None, None]
    gradient = torch.where(z <= 0, 0, slope) if rectify else slope.expand_as(z).clone()
    pull = suppression * mask * difference.sign()  # of the pair map; each member sees it its own way round
    pulls = torch.stack([pull, pull.flip(-1)][:group_size], 1)
    gradient[each, :, target] -= torch.where(own > 0, pulls * share, 0)
    layout = torch.empty_like(logit_map)
    return objective, layout.copy_(gradient.flatten(0, 1)), pair_map, mask, score.flatten(0, 1)


def cam_accumulate(
    maps: list[Tensor],  # each [N, h_s, w_s]
    total: Tensor,  # [N, H, W]
    size: tuple[int, int],  # the maps are resized to this, then cropped to (H, W)
    normalise: bool = False,
) -> Tensor:
    """total + sum_s crop(bilinear(map_s, size)), then divided by (max + 1e-5) per map if asked. Writes total."""
    height, width = total.shape[-2:]
    for scale_map in maps:
        resized = F.interpolate(scale_map[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        total += resized[:, :height, :width]
    if normalise and total.numel():
        total /= total.amax((1, 2), keepdim=True) + 1e-5
    return total


def _rows(tensor: Tensor) -> Tensor:
    """A dense channels-last [B, C, H, W] as [rows, C]: a view or an error, never a copy; [rows, C] as it is."""
    if tensor.ndim == 2:
        return tensor
    batch, channels, height, width = tensor.shape
    return tensor.permute(0, 2, 3, 1).view(batch * height * width, channels)


def masked_relu(
    x: Tensor,  # [B, C, H, W] channels-last, or [rows, C]
    bias: Tensor | None = None,  # [C]
    residual: Tensor | None = None,  # like x
    ceiling: float = float("inf"),
    valid: Tensor | None = None,  # [B, H, W] or [rows]
    save: bool = True,
) -> Tensor:  # uint8 [ceil(numel / 8)], or [0]
    """x <- min(max(x + bias + residual, 0), ceiling) where valid, else 0; returns the bits of 0 < v < ceiling."""
    rows = _rows(x)
    v = rows if bias is None else (rows + bias).to(x.dtype)
    v = v if residual is None else v + _rows(residual)
    v = v if valid is None else torch.where(valid.flatten()[:, None] != 0, v, 0)
    kept = ~((v <= 0) | (v >= ceiling))
    rows.copy_(v.clamp(0, ceiling))
    if not save:
        return x.new_empty(0, dtype=torch.uint8)
    flags = F.pad(kept.flatten(), (0, -kept.numel() % 8)).unflatten(0, (-1, 8)).to(torch.int32)
    return (flags << torch.arange(8, device=x.device)).sum(1).to(torch.uint8)


def masked_relu_backward(gradient: Tensor, bits: Tensor) -> Tensor:
    """g <- bit ? g : 0, in memory order."""
    flags = (bits[:, None] >> torch.arange(8, device=bits.device, dtype=torch.uint8)) & 1
    rows = _rows(gradient)
    rows.copy_(torch.where(flags.flatten()[: rows.numel()].view(rows.shape) != 0, rows, 0))
    return gradient


def _simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [N, d] -> the d + 1 vertices around each point, as int64 keys [N, d + 1, d], and their weights.

    All in float32 and in the order of Krähenbühl's code: another rounding puts points into other simplices.
    """
    points, d = features.shape
    deviation = torch.tensor((2 / 3) ** 0.5 * (d + 1), dtype=torch.float32).item()
    scaled = [features[:, i] * torch.tensor(1 / ((i + 2) * (i + 1)) ** 0.5 * deviation).float() for i in range(d)]
    elevated, total = [features.new_empty(points)] * (d + 1), features.new_zeros(points)
    for i in range(d, 0, -1):
        elevated[i] = total - i * scaled[i - 1]
        total = total + scaled[i - 1]
    elevated[0] = total
    position = torch.stack(elevated, 1)  # on the plane where the d + 1 coordinates sum to 0
    cells = (position * torch.tensor(1 / (d + 1)).float()).round()
    rest = position - cells * (d + 1)
    smaller = rest[:, :, None] < rest[:, None, :]  # equal ones: the first is the smaller
    tie = (rest[:, :, None] == rest[:, None, :]) & torch.ones(d + 1, d + 1).tril(-1).bool().to(rest.device)
    rank = (smaller | tie).sum(2) + cells.sum(1, keepdim=True).long()
    wrap = (rank < 0).long() - (rank > d).long()
    rank, cells = rank + wrap * (d + 1), cells.long() + wrap
    rest = (position - cells * (d + 1)) * torch.tensor(1 / (d + 1)).float()
    ordered = torch.empty_like(rest).scatter_(1, d - rank, rest)
    weights = ordered - ordered.roll(1, 1)
    weights[:, 0] = ordered[:, 0] + (1 - ordered[:, d])
    colour = torch.arange(d + 1, device=rank.device)
    over = rank[:, None, :d] > (d - colour)[None, :, None]
    keys = (cells[:, None, :d] - over.long()) * (d + 1) + colour[None, :, None]
    return keys, weights


class _Lattice:
    """The permutohedral lattice of float32 features [N, d]: a Gaussian filter of deviation 1 in their space."""

    def __init__(self, features: Tensor) -> None:
        points, d = features.shape
        if points % 4:  # Krähenbühl's code takes four points at a time; those missing lie at 0 and have vertices too
            features = torch.cat([features, features.new_zeros(1, d)])
        keys, weights = _simplices(features)
        keys = keys.reshape(-1, d)
        self.low, self.span = keys.amin(0) // (d + 1) - 2, (keys.amax(0) - keys.amin(0)) // (d + 1) + 5
        packed, index = torch.unique(self._pack(keys), return_inverse=True)
        vertices = torch.empty(len(packed), d, dtype=torch.int64, device=keys.device)
        vertices[index] = keys
        self.count = len(vertices)
        self.index, self.weights = index.view(-1, d + 1)[:points], weights[:points]
        self.neighbours = []
        for axis in range(d + 1):
            step = torch.ones(d, dtype=torch.int64, device=keys.device)
            step[axis : axis + 1] = -d
            self.neighbours.append([self._find(packed, vertices + sign * step) for sign in (-1, 1)])

    def _pack(self, keys: Tensor) -> Tensor:
        """[N, d] -> [N]: one number for the colour, equal to each coordinate modulo d + 1, and the coordinates."""
        d = keys.shape[1]
        packed = colour = keys[:, 0] % (d + 1)
        for i in range(d):
            packed = packed * self.span[i] + (keys[:, i] - colour) // (d + 1) - self.low[i]
        return packed

    def _find(self, packed: Tensor, wanted: Tensor) -> Tensor:
        """Their numbers among the vertices, `count` for those that are absent."""
        wanted = self._pack(wanted)
        found = torch.searchsorted(packed, wanted).clamp(max=self.count - 1)
        return torch.where(packed[found] == wanted, found, self.count)

    def filter(self, values: Tensor) -> Tensor:  # [N, channels]
        d, weights = self.index.shape[1] - 1, self.weights.to(values.dtype)
        at = values.new_zeros(self.count + 1, values.shape[1])
        for vertex in range(d + 1):
            at.index_add_(0, self.index[:, vertex], weights[:, vertex, None] * values)
        for low, high in self.neighbours:
            at[:-1] += 0.5 * (at[low] + at[high])
        sliced = sum(weights[:, v, None] * at[self.index[:, v]] for v in range(d + 1))
        return sliced / (1 + 2.0**-d)


def dense_crf(
    images: Tensor,  # uint8 [B, H, W, 3]
    unary: Tensor,  # [B, L, H, W] or [B, S, L, H, W]
    steps: int = 10,
    gaussian: tuple[float, float] | None = (3.0, 3.0),
    bilateral: tuple[float, float, float] | None = (50.0, 5.0, 10.0),
) -> Tensor:  # like unary
    """Q <- softmax(-unary + sum_k w_k n_k F_k(n_k Q)), n_k = F_k(1)^-1/2, `steps` times from softmax(-unary)."""
    height, width = images.shape[1:3]
    at = torch.meshgrid(*(torch.arange(n, device=images.device).float() for n in (height, width)), indexing="ij")
    place = torch.stack([at[1].flatten(), at[0].flatten()], 1)
    probability = torch.empty_like(unary)
    for image, energy, out in zip(images, unary, probability, strict=True):
        kernels = []
        if gaussian is not None:
            kernels.append((_Lattice(place / gaussian[0]), gaussian[1]))
        if bilateral is not None:
            colour = image.reshape(-1, 3).float() / bilateral[1]
            kernels.append((_Lattice(torch.cat([place / bilateral[0], colour], 1)), bilateral[2]))
        ones = unary.new_ones(height * width, 1)
        norms = [(lattice.filter(ones) + 1e-20).rsqrt() for lattice, _ in kernels]
        energy = energy.flatten(-2).movedim(-1, 0)  # [N, (S,) L]
        belief = (-energy).softmax(-1)
        for _ in range(steps):
            logit = -energy
            for (lattice, weight), norm in zip(kernels, norms, strict=True):
                message = norm * lattice.filter(norm * belief.flatten(1))
                logit = logit + weight * message.view_as(belief)
            belief = logit.softmax(-1)
        out.copy_(belief.movedim(0, -1).unflatten(-1, (height, width)))
    return probability
