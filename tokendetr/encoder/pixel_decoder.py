"""The encoder in the pixel decoders of Mask2Former, MaskDINO and their descendants.

Those detectors have no ``transformer.encoder``. Their pixel decoder contains the encoder of
Deformable DETR's original code (``MSDeformAttnTransformerEncoder``), with its names and call. So do
detectors derived from that code; DINO's authors changed the call.

Shapes: B image, N all tokens, C channel, L level.
"""

import inspect
import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokendetr.compat.torch_private import has_forward_hooks
from tokendetr.encoder.forward_context import observe
from tokendetr.encoder.sparsifier import TokenSparsifier
from tokendetr.encoder.token_encoder import TokenEncoder
from tokendetr.errors import UnsupportedDetectorError
from tokendetr.layers.adoption import adopt_parameters
from tokendetr.layers.modes import evaluating
from tokendetr.tokens import LevelLayout

__all__ = ["DinoAuthorsEncoder", "PixelDecoderEncoder", "sparsify_pixel_decoder"]

logger = logging.getLogger(__name__)

_PARTS = ("self_attn", "linear1", "linear2", "norm1", "norm2")
_TOLERANCE = 0.03
"""Of results, as a share of their norm: bfloat16 rounds by up to 0.01."""

_NAMES = {
    "self_attn": "attentions.0",
    "norm1": "norms.0",
    "linear1": "ffns.0.layers.0.0",
    "linear2": "ffns.0.layers.1",
    "norm2": "norms.1",
}
"""Submodules of a layer: the pixel decoder's name, and that of :class:`EncoderLayer`."""


class PixelDecoderEncoder(TokenEncoder):
    """A :class:`TokenEncoder` with the call and the state-dict keys of a pixel decoder's encoder.

    Detectors that kept the first code's layers and took over detrex's call use the names of
    :meth:`TokenEncoder.forward`; both calls work.

    Args:
        **options: those of :class:`TokenEncoder`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_state_dict_post_hook(_restore_original_names)
        self.register_load_state_dict_pre_hook(_read_original_names)

    def forward(  # type: ignore[override]  # the call is the pixel decoder's
        self,
        src: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        valid_ratios: Tensor | None = None,
        pos: Tensor | None = None,
        padding_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Encode a batch of flattened feature pyramids.

        Args:
            src: features [B, N, C], level by level.
            spatial_shapes: long [L, 2], (height, width) of the levels, in the order of ``src``.
            level_start_index: unused; it follows from the shapes.
            valid_ratios: [B, L, 2], real part of each level's (width, height); None: that of the
                padding mask.
            pos: positions [B, N, C].
            padding_mask: bool [B, N], True = padding.
            **kwargs: instead of ``src``, ``pos`` and ``padding_mask``: ``query``, ``query_pos``,
                ``query_key_padding_mask`` and ``reference_points``.

        Returns:
            The memory [B, N, C], in the order of ``src``.

        Raises:
            TypeError: further arguments beside ``src``.
        """
        if src is None:
            return super().forward(
                spatial_shapes=spatial_shapes, valid_ratios=valid_ratios, **kwargs
            )
        if kwargs:
            raise TypeError(
                f"{type(self).__name__} got unexpected arguments: {', '.join(sorted(kwargs))}"
            )
        return super().forward(
            src,
            query_pos=pos,
            query_key_padding_mask=padding_mask,
            spatial_shapes=spatial_shapes,
            valid_ratios=valid_ratios,
        )


class DinoAuthorsEncoder(PixelDecoderEncoder):
    """A :class:`PixelDecoderEncoder` with the call of the encoder of DINO's authors."""

    def forward(  # type: ignore[override]  # the call of DINO's authors
        self,
        src: Tensor,
        pos: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        valid_ratios: Tensor,
        key_padding_mask: Tensor,
        ref_token_index: None = None,
        ref_token_coord: None = None,
    ) -> tuple[Tensor, None, None]:
        """Encode a batch of flattened feature pyramids.

        Args:
            src: features [B, N, C], level by level.
            pos: positions [B, N, C].
            spatial_shapes: long [L, 2], (height, width) of the levels, in the order of ``src``.
            level_start_index: unused; it follows from the shapes.
            valid_ratios: [B, L, 2], real part of each level's (width, height).
            key_padding_mask: bool [B, N], True = padding.
            ref_token_index: only None: proposals that are made before the encoder.
            ref_token_coord: only None: their boxes.

        Returns:
            The memory [B, N, C], and two times None: what the layers predicted of proposals.

        Raises:
            UnsupportedDetectorError: proposals are made before the encoder.
        """
        if ref_token_index is not None or ref_token_coord is not None:
            raise UnsupportedDetectorError(
                "the detector makes proposals before its encoder, whose layers predict from them, "
                "which TokenEncoder does not support: two_stage_type must be 'standard' or 'no'"
            )
        memory_BNC = super().forward(
            src, spatial_shapes, level_start_index, valid_ratios, pos, key_padding_mask
        )
        return memory_BNC, None, None


def _restore_original_names(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: object
) -> None:
    _rename(state_dict, prefix, {ours: original for original, ours in _NAMES.items()})


def _read_original_names(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    _rename(state_dict, prefix, _NAMES)


def _rename(state_dict: dict[str, Any], prefix: str, names: Mapping[str, str]) -> None:
    """Rename the layers' keys below a prefix, in place and in the same order."""
    parts = "|".join(map(re.escape, names))
    pattern = re.compile(rf"({re.escape(prefix)}layers\.\d+)\.({parts})\.(.*)")
    for key in list(state_dict):
        value, match = state_dict.pop(key), pattern.fullmatch(key)
        name = f"{match[1]}.{names[match[2]]}.{match[3]}" if match else key
        state_dict[name] = value


def sparsify_pixel_decoder(model: nn.Module, sparsifier: TokenSparsifier | None) -> nn.Module:
    """Give the encoder of a model's pixel decoder a sparsifier, in place.

    Parameters, state-dict keys and the model's call stay the same, and with all tokens the new
    encoder gives what the old one gives: both are run on two small feature pyramids, one with
    padding. Levels are numbered in the pixel decoder's order. The model has no two-stage head to
    score tokens with, and its criterion is for masks, so Sparse DETR needs ``projection="own"`` and
    ``auxiliary_heads=False``.

    Args:
        model: a built model with one ``MSDeformAttnTransformerEncoder``.
        sparsifier: chooses the tokens of each layer; None: all.

    Returns:
        ``model``, with the hooks of :func:`tokendetr.encoder.observe`.

    Raises:
        UnsupportedDetectorError: it has none or several, one of another form, with further layers
            or with other results, or lacks what the sparsifier needs.
        ValueError: the sparsifier does not fit the number of layers or levels.
    """
    found = {name: module for name, module in model.named_modules() if _is_encoder(module)}
    if len(found) != 1:
        raise UnsupportedDetectorError(
            f"{type(model).__name__} has {len(found)} encoders of a pixel decoder "
            f"({', '.join(found) or 'layers with ' + ', '.join(_PARTS)}), and needs one"
        )
    ((name, original),) = found.items()
    parent, _, attribute = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, attribute, _with_weights_of(original, sparsifier))
    try:
        return observe(model)
    except UnsupportedDetectorError:
        setattr(owner, attribute, original)
        raise


def _is_encoder(module: nn.Module) -> bool:
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    # Decoder layers have submodules of the same names, but their self-attention is not deformable.
    return all(hasattr(layer, part) for layer in layers for part in _PARTS) and hasattr(
        layers[0].self_attn, "sampling_offsets"
    )


def _with_weights_of(original: nn.Module, sparsifier: TokenSparsifier | None) -> nn.Module:
    """Return a :class:`PixelDecoderEncoder` with the parameters and mode of another encoder."""
    layers: Any = original.layers
    first = layers[0]
    activation = getattr(first, "activation", F.relu)
    if activation is not F.relu and not isinstance(activation, nn.ReLU):
        raise UnsupportedDetectorError(
            f"{type(original).__name__} has {activation} between its linear layers; "
            "TokenEncoder supports ReLU only"
        )
    attention = first.self_attn  # detrex's module, or that of Deformable DETR's original code
    num_levels = _either(attention, "num_levels", "n_levels")
    of_dino = "ref_token_index" in inspect.signature(original.forward).parameters
    encoder: TokenEncoder = (DinoAuthorsEncoder if of_dino else PixelDecoderEncoder)(
        embed_dim=attention.output_proj.out_features,
        num_heads=_either(attention, "num_heads", "n_heads"),
        feedforward_dim=first.linear1.out_features,
        attn_dropout=_dropout((first, "dropout1"), (attention, "dropout")),
        ffn_dropout=_dropout((first, "dropout2"), (first, "dropout3")),
        num_layers=len(layers),
        num_feature_levels=num_levels,
        num_points=_either(attention, "num_points", "n_points"),
        sparsifier=sparsifier,
    ).to(next(original.parameters()))
    _take_parameters(encoder, original)
    encoder.sparsifier = None
    _check_results(encoder, original, num_levels)
    if hooked := [name for name, each in original.named_modules() if has_forward_hooks(each)]:
        logger.warning(
            "forward hooks are not carried over to the new encoder: register them again on %s",
            ", ".join(name or "the encoder itself" for name in hooked),
        )
    encoder.sparsifier = sparsifier
    return encoder.train(original.training)


def _take_parameters(encoder: nn.Module, original: nn.Module) -> None:
    loaded = adopt_parameters(encoder, original.state_dict(keep_vars=True), strict=False)
    absent = [key for key in loaded.missing_keys if not key.startswith("sparsifier.")]
    if other := sorted({key.rpartition(".")[0] for key in [*loaded.unexpected_keys, *absent]}):
        raise UnsupportedDetectorError(
            f"{type(original).__name__} has layers that TokenEncoder lacks, whose weights would be "
            f"lost: {', '.join(other)}"
        )


def _check_results(encoder: TokenEncoder, original: nn.Module, num_levels: int) -> None:
    """Compare the memory of two encoders with equal weights on two small, unlike images.

    Forks of the first code differ in the order of arguments, in where their queries sample, or in
    the place of the norms, which the names and shapes of their weights do not tell.

    Raises:
        UnsupportedDetectorError: the results differ, or the calls.
    """
    weight = next(original.parameters())
    if weight.is_meta:
        return
    name = type(original).__name__
    layout, known = _small_batch(num_levels, encoder.embed_dim, weight)
    call = {
        argument: known[argument]
        for argument in inspect.signature(original.forward).parameters
        if argument in known
    }
    with torch.no_grad(), evaluating(original), evaluating(encoder):
        try:  # the first code's encoder is called by position, others by name
            found = encoder(*call.values()) if "src" in call else encoder(**call)
        except (TypeError, ValueError) as error:
            raise UnsupportedDetectorError(
                f"{name} takes ({', '.join(call)}), which is not the call of Deformable DETR's, "
                f"DINO's or detrex's encoders: {error}"
            ) from error
        try:
            expected = _memory(original(**call))[layout.valid_BN].float()
        except Exception as error:  # of any kind: an operator may be compiled for other devices
            logger.warning(
                "%s does not run here (%s), so its results were not compared with TokenEncoder's: "
                "call tokendetr.accelerate(model) before",
                name,
                error,
            )
            return
    difference = (_memory(found)[layout.valid_BN].float() - expected).norm() / expected.norm()
    if difference > _TOLERANCE:
        raise UnsupportedDetectorError(
            f"{name} is not an encoder of Deformable DETR: with equal weights, TokenEncoder's "
            f"results differ by {float(difference):.0%} (where queries sample, padding, norms)"
        )


def _memory(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _small_batch(
    num_levels: int, embed_dim: int, like: Tensor
) -> tuple[LevelLayout, dict[str, Tensor]]:
    """Return the layout of two images, one with padding, and the arguments of encoders by name."""
    shapes = [(2 + level, 9 + 3 * level) for level in reversed(range(num_levels))]
    smaller = [(height - height // 3, width - width // 5) for height, width in shapes]
    layout = LevelLayout.from_valid_sizes(shapes, (shapes, smaller), device=like.device)
    size = (2, 2, layout.num_tokens, embed_dim)
    src, pos = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like)
    known = {
        "spatial_shapes": layout.spatial_shapes(like.device),
        "level_start_index": layout.level_start_index(like.device),
        "valid_ratios": layout.valid_ratios_BL2.to(like),
        "reference_points": layout.reference_points_BNL2().to(like),
    }
    known |= {"src": src, "query": src, "pos": pos, "query_pos": pos}
    masks = ("padding_mask", "key_padding_mask", "query_key_padding_mask")
    return layout, known | dict.fromkeys(masks, layout.padding_BN)


def _dropout(*places: tuple[nn.Module, str]) -> float:
    """Return the probability of the first dropout that there is."""
    found = (getattr(module, name, None) for module, name in places)
    return next((float(each.p) for each in found if isinstance(each, nn.Dropout)), 0.0)


def _either(module: Any, name: str, other: str) -> int:
    return int(getattr(module, name if hasattr(module, name) else other))
