"""The climb: configuration, plan, loop, and the merged maps."""

from advcam_fast.climb.config import PRESETS, ClimbConfig
from advcam_fast.climb.maps import MapMaker, MapResult, compute_maps

__all__ = ["PRESETS", "ClimbConfig", "MapMaker", "MapResult", "compute_maps"]
