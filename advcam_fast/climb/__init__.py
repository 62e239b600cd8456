"""The climb: configuration, plan, loop, and the merged maps."""

from advcam_fast.climb.config import PRESETS, ClimbConfig
from advcam_fast.climb.maps import MapMaker, MapResult, compute_maps
from advcam_fast.climb.plan import climb_cost, view_sizes

__all__ = ["PRESETS", "ClimbConfig", "MapMaker", "MapResult", "climb_cost", "compute_maps", "view_sizes"]
