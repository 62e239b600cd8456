"""Networks: classifiers of any features with a linear head, by name, their frozen executors, and the affinity net."""

from advcam_fast.models.affinity_net import AffinityNet, load_affinity_net, new_affinity_net
from advcam_fast.models.cam_model import CamModel, Classifier
from advcam_fast.models.deeplab import HEADS, Segmenter, load_segmenter, new_segmenter
from advcam_fast.models.frozen import FrozenFeatures, freeze
from advcam_fast.models.grad_cam_model import GradCamModel, available_layers
from advcam_fast.models.load import available_models, load_model
from advcam_fast.models.trainable import TrainableClassifier, new_classifier

__all__ = [
    "HEADS",
    "AffinityNet",
    "CamModel",
    "Classifier",
    "FrozenFeatures",
    "GradCamModel",
    "Segmenter",
    "TrainableClassifier",
    "available_layers",
    "available_models",
    "freeze",
    "load_affinity_net",
    "load_model",
    "load_segmenter",
    "new_affinity_net",
    "new_classifier",
    "new_segmenter",
]
