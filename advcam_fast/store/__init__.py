"""The run folder: maps, manifest and settings that survive kill -9."""

from advcam_fast.store.files import StoreError
from advcam_fast.store.manifest import Record
from advcam_fast.store.run_folder import RunFolder

__all__ = ["Record", "RunFolder", "StoreError"]
