"""advcam_fast: image-level tags in, AdvCAM pseudo masks out, at the speed of the hardware."""

from advcam_fast import _interrupt, ops  # noqa: F401  (_interrupt before what takes seconds to import)
from advcam_fast.climb import ClimbConfig, MapResult, compute_maps
from advcam_fast.errors import UsageError
from advcam_fast.models import CamModel, GradCamModel, available_layers, load_model

__all__ = [
    "CamModel",
    "ClimbConfig",
    "GradCamModel",
    "MapResult",
    "UsageError",
    "available_layers",
    "compute_maps",
    "load_model",
    "ops",
]
__version__ = "0.1.0"
