"""From the maps of a run to trained networks."""

from advcam_fast.train.affinity import AffinityConfig, train_affinity
from advcam_fast.train.affinity_labels import affinity_labels
from advcam_fast.train.training import TrainingStep

__all__ = ["AffinityConfig", "TrainingStep", "affinity_labels", "train_affinity"]
