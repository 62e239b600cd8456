"""From maps, tags and masks to trained networks."""

from advcam_fast.train.affinity import AffinityConfig, train_affinity
from advcam_fast.train.affinity_labels import affinity_labels
from advcam_fast.train.classifier import TrainedClassifier, train_classifier
from advcam_fast.train.classifier_config import RECIPES, ClassifierConfig
from advcam_fast.train.judging import class_logits
from advcam_fast.train.segmenter import SEGMENTER_RECIPES, SegmenterConfig, train_segmenter
from advcam_fast.train.team import Team, joined_team
from advcam_fast.train.training import TrainingStep

__all__ = [
    "RECIPES",
    "SEGMENTER_RECIPES",
    "AffinityConfig",
    "ClassifierConfig",
    "SegmenterConfig",
    "Team",
    "TrainedClassifier",
    "TrainingStep",
    "affinity_labels",
    "class_logits",
    "joined_team",
    "train_affinity",
    "train_classifier",
    "train_segmenter",
]
