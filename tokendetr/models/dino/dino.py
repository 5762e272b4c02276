"""DINO: DETR with contrastive denoising, mixed query selection and look-forward-twice.

Source: arXiv 2203.03605; names, arguments and state-dict keys of detrex ``projects/dino``.
Differs: trains on any device, evaluates padded batches as if each image were alone, and takes
images of any size, with or without boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Embedding, Module

from tokendetr.detector import detector as base
from tokendetr.detector.denoising import contrastive_queries, keep_in_graph, split_denoising
from tokendetr.detector.heads import predict
from tokendetr.detector.pyramid import Pyramid
from tokendetr.detector.targets import Target
from tokendetr.models.dino.dino_transformer import DINOTransformer


class DINO(base.DeformableDetector):
    """DINO.

    Args:
        backbone: backbone module.
        position_embedding: position embedding of feature maps.
        neck: projects backbone features to the transformer's levels.
        transformer: a :class:`DINOTransformer`.
        embed_dim: width of the transformer.
        num_classes: number of classes.
        num_queries: number of matching queries.
        criterion: a ``DINOCriterion``.
        pixel_mean: channel means, 0..255.
        pixel_std: channel standard deviations.
        aux_loss: train every decoder layer.
        select_box_nums_for_evaluation: detections per image.
        device: ignored; accepted for upstream's configs. Move the model with ``.to(device)``.
        dn_number: positive denoising queries per image; 0 turns denoising off.
        label_noise_ratio: label noise of denoising queries, 0..1.
        box_noise_scale: box noise of denoising queries.
        input_format: channel order of ``image``, for training visualizations.
        vis_period: iterations between training visualizations in the event storage; 0 for none.
    """

    def __init__(
        self,
        backbone: Module,
        position_embedding: Module,
        neck: Module,
        transformer: DINOTransformer,
        embed_dim: int,
        num_classes: int,
        num_queries: int,
        criterion: Module,
        pixel_mean: Sequence[float] = (123.675, 116.280, 103.530),
        pixel_std: Sequence[float] = (58.395, 57.120, 57.375),
        aux_loss: bool = True,
        select_box_nums_for_evaluation: int = 300,
        device: str = "cuda",
        dn_number: int = 100,
        label_noise_ratio: float = 0.2,
        box_noise_scale: float = 1.0,
        input_format: str | None = "RGB",
        vis_period: int = 0,
    ) -> None:
        super().__init__(
            base.DetectorParts(backbone, position_embedding, neck, transformer, criterion),
            base.DetectorSizes(embed_dim, num_classes, num_queries, select_box_nums_for_evaluation),
            base.PixelScale(pixel_mean, pixel_std),
            aux_loss=aux_loss,
            input_format=input_format,
            vis_period=vis_period,
        )
        self.add_heads(two_stage=True, shared=False)
        self.transformer.decoder.class_embed = self.class_embed
        self.transformer.decoder.bbox_embed = self.bbox_embed
        self.label_enc = Embedding(num_classes, embed_dim)
        self.dn_number = dn_number
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale

    def detect(self, pyramid: Pyramid, targets: list[Target] | None) -> base.DetectorOutput:
        """Return predictions of matching queries, proposals and, in training, denoising queries."""
        denoising = None
        if targets is not None:
            denoising = contrastive_queries(
                targets,
                self.label_enc,
                dn_number=self.dn_number,
                label_noise_ratio=self.label_noise_ratio,
                box_noise_scale=self.box_noise_scale,
            )
        output = self.transformer(pyramid, denoising)
        layers = predict(
            output.decoded, self.class_embed, self.bbox_embed, self.transformer.decoder.num_layers
        )
        if targets is not None and denoising is None:
            layers = keep_in_graph(layers, self.label_enc)
        layers, dn_metas = split_denoising(layers, denoising, aux=self.aux_loss)
        return base.DetectorOutput(layers, output.proposals.selected_outputs(), (dn_metas,))
