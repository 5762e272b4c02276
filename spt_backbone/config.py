"""Config helpers: make SPT the backbone of a detector's lazy config, and evaluate its selection."""

from detectron2.layers import ShapeSpec
from omegaconf import DictConfig, open_dict

from tokendetr.config import all_or_nothing, observed, target_name, wrap_target

WATCHED = "spt_backbone.evaluator.build_with_selection"


@all_or_nothing
def use_spt(model: DictConfig, backbone: DictConfig) -> DictConfig:
    """Make SPT a detector's backbone, and include its loss in the detector's.

    A detector's ``neck`` is set to read SPT's outputs. In a detectron2 model with a feature
    pyramid, SPT replaces the pyramid's ``bottom_up``. The model keeps its class and arguments and
    becomes observed (:func:`tokendetr.config.observed`).

    Args:
        model: node of a detector; changed in place.
        backbone: node of :class:`spt_backbone.SPT` with ``embed_dim`` and ``out_indices``.

    Returns:
        ``model``.

    Raises:
        KeyError: the model has neither a neck nor a pyramid.
        ValueError: the pyramid reads another number of maps than SPT returns.
    """
    names = {index: f"p{index}" for index in backbone.out_indices}
    pyramid = model.get("backbone")
    with open_dict(model):
        if "neck" in model:
            model.backbone = backbone
            model.neck.input_shapes = {
                name: ShapeSpec(channels=backbone.embed_dim * 2**index)
                for index, name in names.items()
            }
            model.neck.in_features = list(names.values())
        elif isinstance(pyramid, DictConfig) and "bottom_up" in pyramid:
            if len(pyramid.in_features) != len(names):
                raise ValueError(
                    f"the pyramid of this detector reads {len(pyramid.in_features)} maps, and SPT "
                    f"with out_indices={tuple(names)} returns {len(names)}"
                )
            pyramid.bottom_up = backbone
            pyramid.in_features = list(names.values())
        else:
            raise KeyError(
                "use_spt() needs a model config with the node neck, or with backbone.bottom_up; "
                f"this one ({target_name(model.get('_target_'))}) has neither"
            )
    return observed(model)


@all_or_nothing
def watch_selection(evaluator: DictConfig) -> DictConfig:
    """Make an evaluator's config also report select ratios and object-token retention, in place.

    Its arguments are kept; only the target is replaced.

    Args:
        evaluator: node of an evaluator with ``dataset_name``.
    """
    wrap_target(evaluator, WATCHED)
    return evaluator
