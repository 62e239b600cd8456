"""Draws docs/strip.jpg: the summed map of a packaged photo after more and more steps of the climb."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

import advcam_fast as af
from advcam_fast.data import read_image
from advcam_fast.report.overlay import overlay, sheet

STEPS = (1, 2, 4, 7, 10)
TABBY = 281


def main() -> None:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("the photo comes with scikit-image: pip install scikit-image")
    image = read_image(Path(spec.origin).parent / "data" / "chelsea.png")
    model = af.load_model("efficientnet_lite0")
    pictures = [np.asarray(image.permute(1, 2, 0))]
    for steps in STEPS:
        config = dataclasses.replace(af.ClimbConfig.preset("general"), steps=steps)
        full = af.compute_maps(model, [image], [[TABBY]], config)[0].full[0]
        pictures.append(overlay(pictures[0], full.float().numpy()))
    titles = ("photo", *(f"{steps} CAM{'s' if steps > 1 else ''}" for steps in STEPS))
    strip: Image.Image = sheet([("tabby", pictures)], titles, height=170)
    strip.save(Path(__file__).with_name("strip.jpg"), quality=88)


if __name__ == "__main__":
    main()
