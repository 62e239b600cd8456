"""The kernels on NumPy arrays, through DLPack: the caller's arrays are written in place, and no tensor is made.

`python examples/numpy_only.py`. CuPy and JAX arrays go the same way; csrc/<kernel>.h says what each argument is.
"""

from __future__ import annotations

import numpy as np

from advcam_fast import _C

draw = np.random.default_rng(0)

# One ascent step on an image and its mirror image: image += 0.08 * gradient / max|gradient|, within the image's range.
image = draw.standard_normal((2, 3, 60, 80), dtype=np.float32)
gradient = draw.standard_normal(image.shape, dtype=np.float32)
expected = image + np.float32(0.08) * gradient / np.abs(gradient).max()
expected = expected.clip(image.min(), image.max())
largest = np.empty(1, np.float32)  # one a pair
_C.climb_step(image, gradient, largest, 0.08)
print("climb_step: largest difference from NumPy", np.abs(image - expected).max())

# A map of one pixel spread along the colours of a photo, dark on the left: 32 steps of a random walk of radius 5.
photo = np.full((1, 3, 47, 63), 30, np.float32)
photo[..., 31:] = 220
maps = np.zeros((1, 1, 47, 63), np.float32)
maps[..., 23, 20] = 1
walked = np.empty_like(maps)
_C.random_walk(maps, photo, walked, radius=5, scale=30.0, steps=32, restart=0.0, color=True)
reached = walked[0, 0] > 1e-6
print("random_walk: pixels reached on the left", reached[:, :31].sum(), "right", reached[:, 31:].sum())
