"""From maps to masks: walks and dense CRF."""

from advcam_fast.refine.config import REFINE_PRESETS, RefineConfig
from advcam_fast.refine.masks import mask_of, refined_maps

__all__ = ["REFINE_PRESETS", "RefineConfig", "mask_of", "refined_maps"]
