"""AdvCAM in the place of transformers' image-segmentation pipeline: beside the real one, and alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compat_nets import small_cam_model
from PIL import Image

import advcam_fast as af
from advcam_fast.compat.transformers import ImageSegmentation, segments
from advcam_fast.data import read_image
from advcam_fast.refine import RefineConfig, mask_of, refined_maps

NAMES = ["cat", "dog", "<b>", "🐈", "crane", 'q"uote/s']


@pytest.fixture(scope="module")
def segmenter() -> ImageSegmentation:
    return ImageSegmentation(small_cam_model(NAMES), "cam", RefineConfig(background=0.1))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stands on its side
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def shape_of(found: Any) -> Any:
    """What a script can rely on: lists, keys and their types, modes, sizes and values of masks."""
    if isinstance(found, list):
        return [shape_of(one) for one in found][:1]
    mask = found["mask"]
    assert set(np.unique(np.asarray(mask)).tolist()) <= {0, 255}
    return (sorted(found), type(found["label"]), type(mask), mask.mode, mask.size)


def test_results_are_of_the_pipelines_kind(segmenter: ImageSegmentation, photo: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"num_encoder_blocks": 1, "depths": [1], "sr_ratios": [1], "hidden_sizes": [8], "decoder_hidden_size": 8}
    heads = {"patch_sizes": [7], "strides": [4], "num_attention_heads": [1], "mlp_ratios": [1], "num_labels": 3}
    theirs = transformers.ImageSegmentationPipeline(
        model=transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**small, **heads)).eval(),
        image_processor=transformers.SegformerImageProcessor(size={"height": 32, "width": 32}),
    )
    for inputs in (str(photo), Image.open(photo), [str(photo)], [Image.open(photo), Image.open(photo)]):
        found, wanted = segmenter(inputs, top_k=2), theirs(inputs)
        assert shape_of(found) == shape_of(wanted)
    assert len(segmenter([str(photo)] * 2, top_k=2)) == len(theirs([str(photo)] * 2)) == 2


def test_masks_are_those_of_refine(segmenter: ImageSegmentation, photo: Path) -> None:
    image, own = read_image(photo), [3, 0]
    result = af.compute_maps(segmenter.model, [image], [own], af.ClimbConfig.preset("cam"))[0]
    wanted = mask_of(refined_maps(result.strided, image, segmenter.refine), image, segmenter.refine)
    found = segmenter(photo, labels=["🐈", "cat"])
    assert [one["label"] for one in found] == ["🐈", "cat"], "masks of one class alone prove little"
    probabilities = segmenter.model.predict(image[None])  # 64 is below what classes are guessed at
    assert all(0 < one["score"] < 1 for one in found) and probabilities.shape == (1, 6)
    for value, one in enumerate(found, start=1):
        assert (np.asarray(one["mask"]) == 255 * (wanted == value).numpy()).all()


def test_classes_are_guessed_or_given(segmenter: ImageSegmentation, photo: Path) -> None:
    (first,) = segmenter(photo)
    assert first["score"] == max(one["score"] for one in segmenter(photo, top_k=6))
    assert segmenter(photo, threshold=1.0) == []
    turned = segmenter([photo, photo], labels=[["cat"], []])
    assert [len(one) for one in turned] == [1, 0]


def test_segments_of_a_stored_mask() -> None:
    mask = torch.tensor([[0, 1, 255], [3, 3, 0]], dtype=torch.uint8)
    first, last = segments(mask, ["a", "b", "c"])
    assert (first["label"], first["score"], last["label"]) == ("a", None, "c")
    assert np.asarray(last["mask"]).tolist() == [[0, 0, 0], [255, 255, 0]]
    assert segments(mask, ["a", "b", "c"], [0.5, 0.25, 0.125])[1]["score"] == 0.125


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"subtask": "panoptic"}, "wanted is semantic"),
        ({"labels": ["cat"], "top_k": 1}, "labels came"),
        ({"labels": ["cow"]}, "cow"),
        ({"inputs": ["a.png"], "labels": ["cat"]}, "a list of names for each of 1 images"),
        ({"inputs": "https://example.org/cat.jpg"}, "nothing is fetched"),
    ],
)
def test_what_does_not_fit_is_named(
    segmenter: ImageSegmentation, photo: Path, options: dict[str, Any], told: str
) -> None:
    options = {name: [photo] if name == "inputs" and value == ["a.png"] else value for name, value in options.items()}
    with pytest.raises(af.UsageError, match=told):
        segmenter(options.pop("inputs", photo), **options)
    with pytest.raises(af.UsageError, match="needs no affinity net"):
        ImageSegmentation(segmenter.model, refine="irn")
