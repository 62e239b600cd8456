"""From maps to masks: walks and dense CRF."""

from advcam_fast.refine.config import REFINE_PRESETS, RefineConfig
from advcam_fast.refine.instances import Instance, instances_of
from advcam_fast.refine.masks import mask_of, refined_maps

__all__ = ["REFINE_PRESETS", "Instance", "RefineConfig", "instances_of", "mask_of", "refined_maps"]
