"""Numbers that several parts of a detector must agree on, compared when it is built.

A config states most of them more than once: as arguments of the parts, which know nothing of each
other. A difference would show in the first step at the earliest, as an error about two matrices, or
not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detrex.modeling.neck import ChannelMapper
from torch import nn

from tokendetr.detector.interfaces import check_callable, check_module
from tokendetr.errors import ConfigError
from tokendetr.layers.deformable_attention import MultiScaleDeformableAttention

if TYPE_CHECKING:
    from tokendetr.detector.detector import DetectorParts, DetectorSizes

__all__ = ["check_channels", "check_parts", "check_stages"]

_ARGUMENTS = {
    "backbone": ("images",),
    "position_embedding": ("mask",),
    "neck": ("features",),
    "transformer": (),  # a detector calls its parts
    "criterion": ("outputs", "targets"),
}
_NUMBERS = {"transformer": ("num_feature_levels",)}

Stated = Iterator[tuple[str, object]]  # config key, number


def check_parts(parts: DetectorParts, sizes: DetectorSizes) -> None:
    """Check that a detector's parts have one width, number of levels and number of classes.

    Parts of other projects that lack a number are left out of its comparison.

    Raises:
        ConfigError: they differ; the message has each part's number and its key in the config. Or
            one is not a module of its kind, or the neck reads features that the backbone lacks.
    """
    for name, part in parts._asdict().items():
        check_module(f"model.{name}", part, *_ARGUMENTS[name], numbers=_NUMBERS.get(name, ()))
    if hasattr(parts.criterion, "matcher"):
        check_callable("model.criterion.matcher", parts.criterion.matcher, "outputs", "targets")
    _check_features(parts)
    _check_equal("width", dict(_widths(parts, sizes)))
    _check_equal("number of levels", dict(_levels(parts)))
    _check_equal("number of classes", dict(_classes(parts, sizes)))


def check_channels(key: str, values: Sequence[float]) -> None:
    """Raise ConfigError unless there is a value for each of the three color channels."""
    if len(values) != 3:
        raise ConfigError(f"{key} needs a value per color channel, three, got {list(values)}")


def check_stages(as_two_stage: bool, transformer: nn.Module) -> None:
    """Raise ValueError if detector and transformer disagree about having two stages.

    Raises:
        ConfigError: the transformer does not say.
    """
    check_module("model.transformer", transformer, numbers=["as_two_stage"])
    if as_two_stage != transformer.as_two_stage:
        raise ValueError(
            f"model.as_two_stage is {as_two_stage}, model.transformer.as_two_stage is "
            f"{transformer.as_two_stage}: set both to the same value"
        )


def _check_equal(what: str, stated: Mapping[str, object]) -> None:
    known = {key: number for key, number in stated.items() if isinstance(number, int)}
    if len(set(known.values())) > 1:
        numbers = ", ".join(f"{key} {number}" for key, number in known.items())
        raise ConfigError(
            f"the parts of the model differ in their {what}, set one for all: {numbers}"
        )


def _check_features(parts: DetectorParts) -> None:
    """Compare the features that a neck like detrex's reads with those that the backbone gives."""
    shapes: Mapping[str, Any] = getattr(parts.backbone, "output_shape", dict)()
    wanted = getattr(parts.neck, "in_features", ()) if shapes else ()
    if missing := [name for name in wanted if name not in shapes]:
        raise ConfigError(
            f"model.neck.in_features has {', '.join(missing)}, and model.backbone gives "
            f"{', '.join(shapes)}: set its out_features to match"
        )
    if isinstance(parts.neck, ChannelMapper):
        for name, block in zip(wanted, parts.neck.convs, strict=False):
            conv: Any = block.conv
            given = {
                "model.backbone": shapes[name].channels,
                f"model.neck.input_shapes.{name}": conv.in_channels,
            }
            _check_equal(f"number of channels of {name}", given)


def _widths(parts: DetectorParts, sizes: DetectorSizes) -> Stated:
    yield "model.embed_dim", sizes.embed_dim
    for name in ("encoder", "decoder"):
        part = getattr(parts.transformer, name)
        yield f"model.transformer.{name}.embed_dim", getattr(part, "embed_dim", None)
    per_axis = getattr(parts.position_embedding, "num_pos_feats", None)
    if isinstance(per_axis, int):
        yield "model.position_embedding.num_pos_feats, twice", 2 * per_axis
    if isinstance(parts.neck, ChannelMapper):
        first: Any = parts.neck.convs[0]
        yield "model.neck.out_channels", first.conv.out_channels
        norm_channels = getattr(first.norm, "num_channels", None)
        yield "model.neck.norm_layer.num_channels", norm_channels


def _levels(parts: DetectorParts) -> Stated:
    transformer = parts.transformer
    yield "model.transformer.num_feature_levels", transformer.num_feature_levels
    for name in ("encoder", "decoder"):
        for module in getattr(transformer, name).modules():
            if isinstance(module, MultiScaleDeformableAttention):
                yield f"model.transformer.{name}.num_feature_levels", module.num_levels
    if isinstance(parts.neck, ChannelMapper):
        extra = parts.neck.extra_convs or ()
        yield "model.neck.num_outs", len(parts.neck.convs) + len(extra)


def _classes(parts: DetectorParts, sizes: DetectorSizes) -> Stated:
    yield "model.num_classes", sizes.num_classes
    yield "model.criterion.num_classes", getattr(parts.criterion, "num_classes", None)
