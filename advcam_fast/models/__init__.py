"""Classifiers: any features with a linear head, networks by name, and their frozen executors."""

from advcam_fast.models.cam_model import CamModel, Classifier
from advcam_fast.models.frozen import FrozenFeatures, freeze
from advcam_fast.models.grad_cam_model import GradCamModel, available_layers
from advcam_fast.models.load import available_models, load_model

__all__ = [
    "CamModel",
    "Classifier",
    "FrozenFeatures",
    "GradCamModel",
    "available_layers",
    "available_models",
    "freeze",
    "load_model",
]
