"""From files on disk to images, masks, items and class indices."""

from advcam_fast.data.dataset import Dataset, Item
from advcam_fast.data.images import ImageError, image_header, read_image, read_mask, resize_image
from advcam_fast.data.labels import match_labels
from advcam_fast.data.spec import AVAILABLE, open_dataset
from advcam_fast.data.tar_member import TarMember
from advcam_fast.data.truth import read_boxes, read_truth
from advcam_fast.data.voc import voc_palette

__all__ = [
    "AVAILABLE",
    "Dataset",
    "ImageError",
    "Item",
    "TarMember",
    "image_header",
    "match_labels",
    "open_dataset",
    "read_boxes",
    "read_image",
    "read_mask",
    "read_truth",
    "resize_image",
    "voc_palette",
]
