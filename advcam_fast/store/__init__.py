"""Folders of maps, masks and instances, with manifest and settings, that survive kill -9."""

from advcam_fast.store.files import StoreError
from advcam_fast.store.instance_folder import InstanceFolder, StoredInstance
from advcam_fast.store.item_folder import ItemFolder
from advcam_fast.store.manifest import Record
from advcam_fast.store.maps import check_store, encode_maps, encoded_bytes
from advcam_fast.store.mask_folder import MOST_CLASSES, MaskFolder
from advcam_fast.store.run_folder import RunFolder

__all__ = [
    "MOST_CLASSES",
    "InstanceFolder",
    "ItemFolder",
    "MaskFolder",
    "Record",
    "RunFolder",
    "StoreError",
    "StoredInstance",
    "check_store",
    "encode_maps",
    "encoded_bytes",
]
