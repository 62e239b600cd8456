"""From the maps of a run to trained networks."""

from advcam_fast.train.affinity import AffinityConfig, TrainingStep, train_affinity
from advcam_fast.train.affinity_labels import affinity_labels

__all__ = ["AffinityConfig", "TrainingStep", "affinity_labels", "train_affinity"]
