"""A script for pydensecrf, and the two lines that take its place: `python examples/replace_pydensecrf.py`.

Before:
    field = pydensecrf.densecrf.DenseCRF2D(width, height, labels)
    field.setUnaryEnergy(unary_from_labels(guess, labels, gt_prob=0.7, zero_unsure=False))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=photo, compat=10)
    sharpened = np.argmax(field.inference(10), axis=0).reshape(height, width)
"""

from __future__ import annotations

import torch

from advcam_fast import ops


def sharpen(photo: torch.Tensor, guess: torch.Tensor, labels: int) -> torch.Tensor:
    """photo: uint8 [H, W, 3]. guess: int64 [H, W], 255 where it is not known. The labels, sharpened: int64 [H, W]."""
    unary = ops.hard_unary(guess, labels, confidence=0.7)
    marginals = ops.dense_crf(photo[None], unary[None], 10, gaussian=(3.0, 3.0), bilateral=(50.0, 5.0, 10.0))
    return marginals[0].argmax(0)


def square_photo(side: int = 96) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A bright square on a dark ground, the true labels, and a guess that is coarse and a little off."""
    truth = torch.zeros(side, side, dtype=torch.int64)
    truth[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    noise = torch.randint(0, 20, (side, side, 3), generator=torch.Generator().manual_seed(0))
    photo = (60 + 120 * truth[..., None] + noise).to(torch.uint8)
    guess = truth.roll((side // 16, -side // 16), (0, 1))
    return photo, truth, guess


if __name__ == "__main__":
    photo, truth, guess = square_photo()
    sharpened = sharpen(photo, guess, 2)
    print("right before", (guess == truth).double().mean().item(), "after", (sharpened == truth).double().mean().item())
