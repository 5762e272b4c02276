"""Config helpers: put SPT under a detector's lazy config, and watch what it selects."""

from detectron2.layers import ShapeSpec
from omegaconf import DictConfig, open_dict

from tokendetr.config import observed, wrap_target

WATCHED = "spt_backbone.evaluator.build_with_selection"


def use_spt(model: DictConfig, backbone: DictConfig) -> DictConfig:
    """Give a detector SPT as its backbone and let it ask for its loss.

    The neck reads the last three stages; the model keeps its class and arguments and becomes
    supervised.

    Args:
        model: node of a detector with ``backbone`` and ``neck``; changed in place.
        backbone: node of :class:`spt_backbone.SPT` with ``embed_dim`` and ``out_indices``.

    Returns:
        ``model``.
    """
    names = {index: f"p{index}" for index in backbone.out_indices}
    with open_dict(model):
        model.backbone = backbone
        model.neck.input_shapes = {
            name: ShapeSpec(channels=backbone.embed_dim * 2**index) for index, name in names.items()
        }
        model.neck.in_features = list(names.values())
    return observed(model)


def watch_selection(evaluator: DictConfig) -> DictConfig:
    """Let an evaluator's config also report select ratios and object-token retention, in place.

    Its arguments stay where they are; only the target is swapped.

    Args:
        evaluator: node of an evaluator with ``dataset_name``.
    """
    wrap_target(evaluator, WATCHED)
    return evaluator
