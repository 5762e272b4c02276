"""Config helpers: put SPT under a detector's lazy config, and watch what it selects."""

from detectron2.layers import ShapeSpec
from omegaconf import DictConfig, open_dict

from tokendetr.config import all_or_nothing, observed, target_name, wrap_target

WATCHED = "spt_backbone.evaluator.build_with_selection"


@all_or_nothing
def use_spt(model: DictConfig, backbone: DictConfig) -> DictConfig:
    """Give a detector SPT as its backbone and let it ask for its loss.

    In a detector with a ``neck``, that neck reads the stages that SPT puts out. In one of
    detectron2's with a feature pyramid, SPT takes the place of the pyramid's ``bottom_up``. The
    model keeps its class and arguments and becomes supervised.

    Args:
        model: node of a detector; changed in place.
        backbone: node of :class:`spt_backbone.SPT` with ``embed_dim`` and ``out_indices``.

    Returns:
        ``model``.

    Raises:
        KeyError: where the model has neither a neck nor a pyramid.
        ValueError: where a pyramid reads another number of maps than SPT puts out.
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
                    f"with out_indices={tuple(names)} puts out {len(names)}"
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
    """Let an evaluator's config also report select ratios and object-token retention, in place.

    Its arguments stay where they are; only the target is swapped.

    Args:
        evaluator: node of an evaluator with ``dataset_name``.
    """
    wrap_target(evaluator, WATCHED)
    return evaluator
