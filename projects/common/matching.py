"""One-to-one matching with focal cost, and the loss weights, of all five detectors."""

from detectron2.config import LazyCall as L
from detrex.modeling.matcher import HungarianMatcher

matcher = L(HungarianMatcher)(
    cost_class=2.0,
    cost_bbox=5.0,
    cost_giou=2.0,
    cost_class_type="focal_loss_cost",
    alpha=0.25,
    gamma=2.0,
)

weights = {"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
denoising_weights = {**weights, **{f"{name}_dn": weight for name, weight in weights.items()}}
