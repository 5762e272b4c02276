"""Edit detectors' lazy configs: add a sparsifier in one line, or change the detector's size."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
from omegaconf import DictConfig, OmegaConf, open_dict

from tokendetr.config.wrap import (
    build_observed,
    build_with_pixel_decoder,
    set_target,
    target_name,
    wrap_target,
)
from tokendetr.encoder import TokenEncoder
from tokendetr.encoder.bypass import AffineBypass
from tokendetr.errors import ConfigError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def all_or_nothing(
    edit: Callable[Concatenate[DictConfig, Arguments], Result],
) -> Callable[Concatenate[DictConfig, Arguments], Result]:
    """Decorate an edit of a config node, so that an edit that raises leaves the node unchanged.

    The edit runs on a copy first: if it raises, it does so before the node itself is touched.

    Args:
        edit: a function that changes its first argument in place.
    """

    @functools.wraps(edit)
    def edit_whole(node: DictConfig, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        edit(copy.deepcopy(node), *args, **kwargs)
        return edit(node, *args, **kwargs)

    return edit_whole


@all_or_nothing
def sparsify(model: DictConfig, sparsifier: DictConfig) -> DictConfig:
    """Add a sparsifier to the encoder of a detector's config, in place.

    ``model.transformer.encoder`` keeps its arguments and gets ``sparsifier``; the model keeps its
    class and arguments, and its submodules may add losses (:func:`observed`). Only targets are
    swapped, so every override path (``model.transformer.encoder.num_layers=...``) stays valid.

    Args:
        model: node of a detector whose encoder is at ``transformer.encoder``.
        sparsifier: node of a :class:`tokendetr.encoder.TokenSparsifier`.

    Returns:
        ``model``.

    Raises:
        KeyError: the model has no such encoder.
        ConfigError: the encoder has further arguments, whose layers would be lost.
    """
    encoder = model.get("transformer", {}).get("encoder")
    if not isinstance(encoder, DictConfig) or "_target_" not in encoder:
        raise KeyError(
            "sparsify() needs a model config with the node transformer.encoder; "
            f"this one ({target_name(model.get('_target_'))}) has none (a model with a pixel "
            "decoder: tokendetr.config.sparsify_pixel_decoder())"
        )
    _check_arguments(encoder)
    set_target(encoder, TokenEncoder)
    with open_dict(model):
        encoder["sparsifier"] = sparsifier
    return observed(model)


@all_or_nothing
def sparsify_pixel_decoder(model: DictConfig, sparsifier: DictConfig) -> DictConfig:
    """Add a sparsifier to the encoder of a pixel decoder (Mask2Former's, MaskDINO's), in place.

    The model is built as its config says, then its encoder is replaced
    (:func:`tokendetr.encoder.sparsify_pixel_decoder`).

    Args:
        model: node of the whole model.
        sparsifier: node of a :class:`tokendetr.encoder.TokenSparsifier`.

    Returns:
        ``model``.
    """
    wrap_target(model, build_with_pixel_decoder)
    with open_dict(model):
        model["sparsifier"] = sparsifier
    return model


def _check_arguments(encoder: DictConfig) -> None:
    """Refuse an encoder with arguments beyond Deformable DETR's.

    Raises:
        ConfigError: the message names the arguments that ``TokenEncoder`` lacks.
    """
    known = {"_target_", *inspect.signature(TokenEncoder.__init__).parameters}
    own = sorted(str(key) for key in encoder if key not in known)
    if own:
        name = target_name(encoder["_target_"])
        raise ConfigError(
            f"{name} has arguments that TokenEncoder does not know ({', '.join(own)}): sparsify() "
            "would drop their layers and weights. Remove the arguments from the config first if "
            "the detector works without them"
        )


@all_or_nothing
def add_bypass(model: DictConfig, *, context: bool = False) -> DictConfig:
    """Update the tokens that a config's sparsifier drops by an affine bypass, in place.

    The bypass takes its sizes from the encoder; see
    :class:`tokendetr.encoder.bypass.AffineBypass`.

    Args:
        model: node of a detector whose encoder has a sparsifier of the keep kind
            (:func:`sparsify`).
        context: let dropped tokens take in their surroundings.

    Returns:
        ``model``.

    Raises:
        KeyError: the encoder has no sparsifier.
    """
    sparsifier = OmegaConf.select(model, "transformer.encoder.sparsifier", default=None)
    if sparsifier is None:
        raise KeyError("add_bypass() needs a model config with transformer.encoder.sparsifier")
    with open_dict(sparsifier):
        sparsifier["bypass"] = L(AffineBypass)(
            embed_dim="${...embed_dim}",
            num_layers="${...num_layers}",
            num_levels="${...num_feature_levels}",
            context=context,
        )
    return model


@all_or_nothing
def observed(model: DictConfig) -> DictConfig:
    """Let the submodules of a config's model add losses to those it returns, in place."""
    wrap_target(model, build_observed)
    return model


@all_or_nothing
def resize(
    model: DictConfig,
    *,
    width: int,
    num_heads: int,
    feedforward_dim: int,
    num_layers: int | None = None,
) -> DictConfig:
    """Resize the neck, encoder and decoder of a detector's config, in place.

    The backbone and the numbers of queries and classes are unchanged, and so is the number of
    channels per group of the neck's norm if it divides the width. A sparsifier's ``embed_dim``
    follows the width; arguments that refer to single layers (stages, cascades) have to be adapted
    to a new depth by hand.

    Args:
        model: node of a detector with a ``ChannelMapper`` as neck.
        width: channels of the tokens, a multiple of ``2 * num_heads``.
        num_heads: attention heads.
        feedforward_dim: hidden channels of the feed-forward networks.
        num_layers: layers of the encoder and of the decoder; None keeps both.

    Returns:
        ``model``.

    Raises:
        ValueError: the width is not a multiple of ``2 * num_heads``.
    """
    if width % (2 * num_heads):
        raise ValueError(f"width must be a multiple of 2 * num_heads = {2 * num_heads}: {width}")
    encoder, decoder = model.transformer.encoder, model.transformer.decoder
    for part in (encoder, decoder):
        part.embed_dim, part.num_heads, part.feedforward_dim = width, num_heads, feedforward_dim
    if "embed_dim" in (encoder.get("sparsifier") or {}):
        _set(encoder.sparsifier, "embed_dim", width)
    model.embed_dim = width
    model.neck.out_channels = width
    norm = model.neck.norm_layer
    per_group = math.gcd(norm.num_channels // norm.num_groups, width)
    norm.num_channels, norm.num_groups = width, width // per_group
    model.position_embedding.num_pos_feats = width // 2
    if num_layers is not None:
        encoder.num_layers = decoder.num_layers = num_layers
        weights = model.criterion.weight_dict
        model.criterion.weight_dict = _weights_of_depth(weights, decoder.num_layers)
    return model


def _set(node: DictConfig, key: str, value: Any) -> None:
    """Set a value unless it follows another key by interpolation."""
    if not OmegaConf.is_interpolation(node, key):
        node[key] = value


def _weights_of_depth(weights: Mapping[str, float], num_layers: int) -> dict[str, float]:
    """Return the loss weights for another number of decoder layers, as ``layer_weights`` does."""
    per_layer = [name.removesuffix("_0") for name in weights if name.endswith("_0")]
    others = {
        name: weight
        for name, weight in weights.items()
        if name.rpartition("_")[0] not in per_layer or not name.rpartition("_")[2].isdigit()
    }
    layers = range(num_layers - 1)
    return others | {f"{name}_{i}": weights[f"{name}_0"] for i in layers for name in per_layer}


def detectron2_model(name: str) -> DictConfig:
    """Return ``model`` of one of detectron2's lazy configs.

    Args:
        name: such as ``common/models/mask_rcnn_fpn.py``.

    Raises:
        ConfigError: the real detectron2 is not installed.
    """
    try:
        return get_config(name).model
    except RuntimeError as error:
        raise ConfigError(
            f"this config needs detectron2 itself, whose {name} it builds on; install it from "
            "https://github.com/facebookresearch/detectron2"
        ) from error
