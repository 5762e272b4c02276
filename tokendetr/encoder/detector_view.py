"""What a token selector may use of the detector around its encoder.

Learned selectors read the detector's own two-stage projection and heads, and look at its decoder's
attention. They find them through the supervised model that is running, so nothing has to be passed
through the encoder's fixed call, no module is registered twice, and copies of a model use their own
parts.

Shapes: B image, N all tokens, C channel.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokendetr.encoder import aux_losses as supervision
from tokendetr.errors import HostError
from tokendetr.layers.deformable_attention import DEFORMABLE_ATTENTIONS
from tokendetr.tokens import LevelLayout


@dataclass(frozen=True)
class Host:
    """A running detector, by the names that detrex's detectors give their parts.

    Attributes:
        detector: the supervised model, with ``transformer``.
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
    def has_proposals(self) -> bool:
        """Whether the detector has two stages: a projection and heads that read encoder tokens."""
        transformer = self.transformer
        return (
            getattr(transformer, "enc_output", None) is not None
            and getattr(transformer.decoder, "class_embed", None) is not None
        )

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

        Raises:
            HostError: where the decoder has none.
        """
        decoder = self._part(self.transformer, "decoder")
        found = tuple(
            module for module in decoder.modules() if isinstance(module, DEFORMABLE_ATTENTIONS)
        )
        if not found:
            raise HostError(f"{type(decoder).__name__} has no deformable attention to look at")
        return found

    def matching_queries(self, num_queries: int, layout: LevelLayout) -> slice:
        """Return which of the decoder's queries are object queries.

        Denoising queries, where a detector adds them, stand in front.

        Args:
            num_queries: all queries that the decoder works on.
            layout: geometry of the batch; two stages have no more queries than tokens.
        """
        if self.has_proposals:
            wanted = getattr(self.transformer, "two_stage_num_proposals", num_queries)
            wanted = min(wanted, layout.num_tokens)
        else:
            wanted = getattr(self.detector, "num_queries", num_queries)
        return slice(max(0, num_queries - wanted), None)

    def _part(self, owner: nn.Module, name: str) -> Any:
        part = getattr(owner, name, None)
        if part is None:
            raise HostError(
                f"{type(self.detector).__name__} has no {name} in its {type(owner).__name__}: "
                "the encoder's sparsifier needs a detector with two stages (as_two_stage=True), "
                "or its own projection and heads where it offers them"
            )
        return part


def current_host() -> Host:
    """Return the detector that is running around the caller.

    Raises:
        HostError: where no supervised model is running.
    """
    context = supervision.current()
    if context is None:
        raise HostError(
            "the sparsifier needs to see the detector around its encoder: build the config with "
            "tokendetr.config.sparsify(), or call tokendetr.encoder.aux_losses.supervise(model)"
        )
    return Host(context.owner)
