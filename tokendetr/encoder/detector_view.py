"""Read-only access to the detector that owns the running encoder.

Learned sparsifiers use the detector's own two-stage projection and heads, and read its decoder's
attention. The encoder passes them a view of the running model instead of references to its modules,
so no module is registered twice and a copied model uses its own modules.

Shapes: B image, N all tokens, C channel.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokendetr.errors import UnsupportedDetectorError
from tokendetr.layers.deformable_attention import is_deformable_attention
from tokendetr.tokens import LevelLayout

_LOSS_ARGUMENTS = ("outputs", "targets", "indices", "num_boxes")
_HEADS_LOSSES = ("class", "labels", "boxes", "cardinality")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class DetectorView:
    """View of a running detector under the attribute names of detrex's detectors.

    Attributes:
        detector: the model, with ``transformer``.
    """

    detector: nn.Module

    @property
    def transformer(self) -> Any:
        """The detector's transformer.

        Raises:
            UnsupportedDetectorError: it has none.
        """
        return self._part(self.detector, "transformer")

    @property
    def decoder(self) -> nn.Module | None:
        """The transformer's decoder; None for detectors with another structure (MaskDINO)."""
        return getattr(getattr(self.detector, "transformer", None), "decoder", None)

    @property
    def has_proposals(self) -> bool:
        """True if the detector has two stages: a projection and heads on encoder tokens."""
        transformer = getattr(self.detector, "transformer", None)
        projection = getattr(transformer, "enc_output", None)
        return projection is not None and getattr(self.decoder, "class_embed", None) is not None

    def project(self, memory_BNC: Tensor, layout: LevelLayout) -> Tensor:
        """Return tokens [B, N, C] as the two-stage head reads them.

        Padding and border tokens are zeroed, then all are projected and normalized.

        Raises:
            UnsupportedDetectorError: for a detector without two stages.
        """
        transformer = self.transformer
        projection = self._part(transformer, "enc_output")
        norm = self._part(transformer, "enc_output_norm")
        return project_tokens(memory_BNC, layout, projection, norm)

    @property
    def class_head(self) -> nn.Module:
        """The head that predicts class logits of projected tokens.

        Raises:
            UnsupportedDetectorError: for a detector without two stages.
        """
        return self._encoder_head("class_embed")

    @property
    def box_head(self) -> nn.Module:
        """The head that predicts box offsets of projected tokens.

        Raises:
            UnsupportedDetectorError: for a detector without two stages.
        """
        return self._encoder_head("bbox_embed")

    @property
    def cross_attentions(self) -> tuple[nn.Module, ...]:
        """The decoder's deformable attentions over the encoder's tokens, layer by layer.

        If the detector has no ``transformer.decoder`` (MaskDINO): all that are in no encoder.

        Raises:
            UnsupportedDetectorError: the decoder has none.
        """
        decoder = self.decoder
        owner = self.detector if decoder is None else decoder
        found = tuple(
            module
            for name, module in owner.named_modules()
            if is_deformable_attention(module)
            and (decoder is not None or "encoder" not in name.split("."))
        )
        if not found:
            raise UnsupportedDetectorError(
                f"{type(owner).__name__} has no deformable cross-attention to read"
            )
        return found

    def matching_queries(self, num_queries: int, layout: LevelLayout) -> slice:
        """Return the range of the decoder's queries that evaluation has too.

        Denoising queries precede them; queries that are matched one to many, in training alone
        (all after H-Deformable DETR's ``num_queries_one2one``), follow them.

        Args:
            num_queries: number of all queries of the decoder.
            layout: geometry of the batch; with two stages there are no more queries than tokens.
        """
        wanted = getattr(self.detector, "num_queries", num_queries)
        if self.has_proposals:
            wanted = getattr(self.transformer, "two_stage_num_proposals", wanted)
            wanted = min(wanted, layout.num_tokens)
        first = max(0, num_queries - wanted)
        one_to_one = getattr(self.detector, "num_queries_one2one", None)
        return slice(first, None if one_to_one is None else first + one_to_one)

    def _encoder_head(self, name: str) -> nn.Module:
        """The transformer's own head on encoder tokens (DINO's authors), or the decoder's last."""
        own: nn.Module | None = getattr(self.transformer, f"enc_out_{name}", None)
        return self._part(self.transformer.decoder, name)[-1] if own is None else own

    def _part(self, owner: nn.Module, name: str) -> Any:
        part = getattr(owner, name, None)
        if part is None:
            raise UnsupportedDetectorError(
                f"{type(self.detector).__name__} has no {name} in its {type(owner).__name__}: "
                "the encoder's sparsifier needs a detector with two stages (as_two_stage=True), "
                "or a projection and heads of its own if it offers them"
            )
        return part


def project_tokens(
    memory_BNC: Tensor, layout: LevelLayout, projection: nn.Module, norm: nn.Module
) -> Tensor:
    """Return tokens [B, N, C] as a two-stage head reads them: projected and normalized.

    Padding and border tokens, which can start no box, are zeroed before.

    Source: ``gen_encoder_output_proposals`` of Deformable DETR and detrex.
    """
    _, usable_BN = layout.proposals()
    projected_BNC: Tensor = norm(projection(memory_BNC.masked_fill(~usable_BN[..., None], 0.0)))
    return projected_BNC


def require_detector(view: DetectorView | None) -> DetectorView:
    """Return the view of the detector around an encoder.

    Raises:
        UnsupportedDetectorError: the encoder runs outside of any detector's forward pass.
    """
    if view is None:
        raise UnsupportedDetectorError(
            "the sparsifier needs to see the detector around its encoder: build the config with "
            "tokendetr.config.sparsify(), or call tokendetr.encoder.observe(model) on a model "
            "that is not one of tokendetr's"
        )
    return view


def check_requirements(model: nn.Module) -> None:
    """Check that a detector has the modules that its sparsifiers need, before anything runs.

    Args:
        model: the whole detector.

    Raises:
        UnsupportedDetectorError: a module is missing; the message names it, the sparsifier that
            needs it, and a remedy.
    """
    for module in model.modules():
        requires: frozenset[str] = getattr(module, "requires", frozenset())
        if not isinstance(requires, frozenset) or not requires:
            continue
        name, view = type(module).__name__, DetectorView(model)
        if "two_stage" in requires and not view.has_proposals:
            raise UnsupportedDetectorError(
                f"{name} reads the two-stage projection and class head of its detector, and "
                f"{type(model).__name__} has none (transformer.enc_output, "
                "transformer.decoder.class_embed): build it with as_two_stage=True, or let the "
                "sparsifier have a projection and heads of its own if it offers them"
            )
        if "set_criterion" in requires:
            _check_criterion(name, getattr(module, "num_classes", None), model)


def _check_criterion(name: str, num_classes: int | None, model: nn.Module) -> None:
    """Check that a model's criterion can train a sparsifier's heads of classes and boxes.

    Args:
        name: of the sparsifier.
        num_classes: of its heads; None: unknown.
        model: the whole detector.

    Raises:
        UnsupportedDetectorError: it cannot.
    """
    criterion: Any = getattr(model, "criterion", None)
    wanted = ("matcher", "losses", "get_loss", "weight_dict")
    missing = [part for part in wanted if not hasattr(criterion, part)]
    lack = f"has no {', '.join(missing)}" if missing else ""
    # Matchers of criteria for masks compare masks, too.
    if not missing and (other := [loss for loss in criterion.losses if loss not in _HEADS_LOSSES]):
        lack = f"asks for {' and '.join(other)}, which these heads do not predict"
    if not missing and (unknown := _further_arguments(criterion)):
        lack = f"needs {unknown}, which these heads do not have"
    if lack:
        raise UnsupportedDetectorError(
            f"{name} trains heads in the encoder by the detector's own criterion, and "
            f"{type(criterion).__name__} {lack}: train without these heads (Sparse DETR's "
            "auxiliary_heads=False), give them a criterion of their own (Focus-DETR's criterion), "
            "or use a method that has none"
        )
    classes = getattr(criterion, "num_classes", None)
    if num_classes is not None and isinstance(classes, int) and num_classes < classes:
        raise UnsupportedDetectorError(
            f"{name} has num_classes={num_classes}, and the detector's criterion {classes}: give "
            "the sparsifier the same number"
        )


def _further_arguments(criterion: Any) -> str:
    """Return the arguments that a criterion's losses need besides a set criterion's four."""
    found: list[str] = []
    for name in ("loss_labels", "loss_boxes"):
        loss = getattr(criterion, name, None)
        needed = [] if loss is None else inspect.signature(loss).parameters.values()
        required = [p.name for p in needed if p.default is p.empty and p.kind not in _VARIADIC]
        found += required[len(_LOSS_ARGUMENTS) :]
    return " and ".join(dict.fromkeys(found))
