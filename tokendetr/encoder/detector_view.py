"""Read-only access to the detector that owns the running encoder.

Learned selectors read the detector's own two-stage projection and heads, and look at its decoder's
attention. The encoder hands them the view of the model that is running, so no module is registered
twice and copies of a model use their own parts.

Shapes: B image, N all tokens, C channel.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokendetr.errors import HostError
from tokendetr.layers.deformable_attention import DEFORMABLE_ATTENTIONS
from tokendetr.tokens import LevelLayout


@dataclass(frozen=True)
class DetectorView:
    """A running detector, by the names that detrex's detectors give their parts.

    Attributes:
        detector: the model, with ``transformer``.
    """

    detector: nn.Module

    @property
    def transformer(self) -> Any:
        """The detector's transformer.

        Raises:
            HostError: where it has none.
        """
        return self._part(self.detector, "transformer")

    @property
    def decoder(self) -> nn.Module | None:
        """The transformer's decoder; None where the detector is built otherwise (MaskDINO)."""
        return getattr(getattr(self.detector, "transformer", None), "decoder", None)

    @property
    def has_proposals(self) -> bool:
        """Whether the detector has two stages: a projection and heads that read encoder tokens."""
        transformer = getattr(self.detector, "transformer", None)
        projection = getattr(transformer, "enc_output", None)
        return projection is not None and getattr(self.decoder, "class_embed", None) is not None

    def project(self, memory_BNC: Tensor, layout: LevelLayout) -> Tensor:
        """Return tokens [B, N, C] as the two-stage head sees them: padding and border tokens
        zeroed, projected, normalised.

        Raises:
            HostError: for a detector without two stages.
        """
        _, usable_BN = layout.proposals()
        transformer = self.transformer
        projection = self._part(transformer, "enc_output")
        norm = self._part(transformer, "enc_output_norm")
        return norm(projection(memory_BNC.masked_fill(~usable_BN[..., None], 0.0)))

    @property
    def class_head(self) -> nn.Module:
        """The head that gives projected tokens their class logits.

        Raises:
            HostError: for a detector without two stages.
        """
        return self._part(self.transformer.decoder, "class_embed")[-1]

    @property
    def box_head(self) -> nn.Module:
        """The head that gives projected tokens their box offsets.

        Raises:
            HostError: for a detector without two stages.
        """
        return self._part(self.transformer.decoder, "bbox_embed")[-1]

    @property
    def cross_attentions(self) -> tuple[nn.Module, ...]:
        """The decoder's deformable attentions over the encoder's tokens, layer by layer.

        Where the detector has no ``transformer.decoder`` (MaskDINO), those that no encoder has.

        Raises:
            HostError: where the decoder has none.
        """
        decoder = self.decoder
        owner = self.detector if decoder is None else decoder
        found = tuple(
            module
            for name, module in owner.named_modules()
            if isinstance(module, DEFORMABLE_ATTENTIONS)
            and (decoder is not None or "encoder" not in name.split("."))
        )
        if not found:
            raise HostError(f"{type(owner).__name__} has no deformable attention to look at")
        return found

    def matching_queries(self, num_queries: int, layout: LevelLayout) -> slice:
        """Return which of the decoder's queries are those that detect objects in evaluation.

        Denoising queries, where a detector adds them, stand in front; a group that is matched one
        to many in training alone (H-Deformable DETR's ``num_queries_one2one``) stands behind.

        Args:
            num_queries: all queries that the decoder works on.
            layout: geometry of the batch; two stages have no more queries than tokens.
        """
        if self.has_proposals:
            wanted = getattr(self.transformer, "two_stage_num_proposals", num_queries)
            wanted = min(wanted, layout.num_tokens)
        else:
            wanted = getattr(self.detector, "num_queries", num_queries)
        first = max(0, num_queries - wanted)
        one_to_one = getattr(self.detector, "num_queries_one2one", None)
        return slice(first, None if one_to_one is None else first + one_to_one)

    def _part(self, owner: nn.Module, name: str) -> Any:
        part = getattr(owner, name, None)
        if part is None:
            raise HostError(
                f"{type(self.detector).__name__} has no {name} in its {type(owner).__name__}: "
                "the encoder's sparsifier needs a detector with two stages (as_two_stage=True), "
                "or its own projection and heads where it offers them"
            )
        return part


def require_detector(view: DetectorView | None) -> DetectorView:
    """Return the view of the detector around an encoder.

    Raises:
        HostError: the encoder runs outside of any detector's forward pass.
    """
    if view is None:
        raise HostError(
            "the sparsifier needs to see the detector around its encoder: build the config with "
            "tokendetr.config.sparsify(), or call tokendetr.encoder.observe(model) on a model "
            "that is not one of tokendetr's"
        )
    return view


def check_requirements(model: nn.Module) -> None:
    """Check that a detector offers what the sparsifiers in it need, before anything runs.

    Args:
        model: the whole detector.

    Raises:
        HostError: naming the sparsifier, what is missing and the way out.
    """
    for module in model.modules():
        requires: frozenset[str] = getattr(module, "requires", frozenset())
        if not isinstance(requires, frozenset) or not requires:
            continue
        name, view = type(module).__name__, DetectorView(model)
        if "two_stage" in requires and not view.has_proposals:
            raise HostError(
                f"{name} reads the two-stage projection and class head of its detector, and "
                f"{type(model).__name__} has none (transformer.enc_output, "
                "transformer.decoder.class_embed): build it with as_two_stage=True, or let the "
                "sparsifier have its own projection and heads where it offers them"
            )
        criterion = getattr(model, "criterion", None)
        wanted = ("matcher", "losses", "get_loss", "weight_dict")
        missing = [part for part in wanted if not hasattr(criterion, part)]
        if "set_criterion" in requires and missing:
            raise HostError(
                f"{name} trains heads in the encoder by the detector's own criterion, and "
                f"{type(criterion).__name__} has no {', '.join(missing)}: "
                "set auxiliary_heads=False to train without these heads"
            )
