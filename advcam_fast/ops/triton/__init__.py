"""The hot loop's ops in Triton: for GPUs where the extension was built without CUDA, AMD's among them.

Same signatures and values as advcam_fast.ops.reference. Importable only where triton is.
"""

from __future__ import annotations

from .cam_accumulate import cam_accumulate
from .climb_loss import climb_loss
from .climb_step import climb_step
from .masked_relu import masked_relu, masked_relu_backward

__all__ = ["cam_accumulate", "climb_loss", "climb_step", "masked_relu", "masked_relu_backward"]
