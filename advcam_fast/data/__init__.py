"""From files on disk to images, masks, items and class indices."""

from advcam_fast.data.dataset import Dataset, Item
from advcam_fast.data.images import ImageError, image_size, read_image, read_mask, resize_image
from advcam_fast.data.labels import match_labels
from advcam_fast.data.spec import open_dataset
from advcam_fast.data.tar_member import TarMember

__all__ = [
    "Dataset",
    "ImageError",
    "Item",
    "TarMember",
    "image_size",
    "match_labels",
    "open_dataset",
    "read_image",
    "read_mask",
    "resize_image",
]
