"""Building blocks that the detectors share, one module per axis of variation.

========================  ============================================================
axis                      module
========================  ============================================================
images and ground truth   ``images``, ``targets``, ``pyramid``
query initialization      ``queries`` (learned), ``proposals`` (two-stage)
positions                 ``positions``, and ``query_position`` of the decoders
denoising                 ``denoising``
refinement                ``refinement``, ``decoder``, ``heads``
matching and losses       ``criterion``
post-processing           ``postprocess``
whole detectors           ``reference_points`` (Deformable, H), ``anchored`` (DAB, DN)
learning rates            ``parameter_groups``
========================  ============================================================

A detector in ``tokendetr.models`` chooses one of each and adds nothing of its own.
"""

from tokendetr.detector.anchored import AnchorDetector, AnchorEncoder, AnchorTransformer
from tokendetr.detector.criterion import (
    DenoisingCriterion,
    LayerwiseCriterion,
    ProposalCriterion,
    layer_weights,
)
from tokendetr.detector.decoder import AnchorDecoder, DeformableDecoder, ScaledAnchorDecoder
from tokendetr.detector.denoising import (
    DenoisingQueries,
    contrastive_queries,
    keep_in_graph,
    noised_queries,
    split_denoising,
)
from tokendetr.detector.detector import (
    ChannelValues,
    DeformableDetector,
    DetectorOutput,
    DetectorParts,
    DetectorSizes,
    PixelScale,
)
from tokendetr.detector.heads import build_heads, predict
from tokendetr.detector.parameter_groups import decay_by_depth, scale_by_name
from tokendetr.detector.positions import anchor_embedding, proposal_embedding
from tokendetr.detector.proposals import (
    Proposals,
    first_class_score,
    max_class_score,
    propose,
    select_top,
)
from tokendetr.detector.pyramid import Pyramid, build_pyramid
from tokendetr.detector.queries import (
    DecodedQueries,
    ObjectQueries,
    Predictions,
    learned_queries,
)
from tokendetr.detector.reference_points import ReferencePointDetector, ReferencePointTransformer
from tokendetr.detector.refinement import refine_boxes
from tokendetr.detector.targets import Target, prepare_targets
from tokendetr.detector.transformer import (
    DeformableTransformer,
    EncodedTokens,
    TransformerOutput,
    TwoStageTransformer,
)

__all__ = [
    "AnchorDecoder",
    "AnchorDetector",
    "AnchorEncoder",
    "AnchorTransformer",
    "ChannelValues",
    "DecodedQueries",
    "DeformableDecoder",
    "DeformableDetector",
    "DeformableTransformer",
    "DenoisingCriterion",
    "DenoisingQueries",
    "DetectorOutput",
    "DetectorParts",
    "DetectorSizes",
    "EncodedTokens",
    "LayerwiseCriterion",
    "ObjectQueries",
    "PixelScale",
    "ReferencePointDetector",
    "ReferencePointTransformer",
    "Predictions",
    "ProposalCriterion",
    "Proposals",
    "Pyramid",
    "ScaledAnchorDecoder",
    "Target",
    "TransformerOutput",
    "TwoStageTransformer",
    "anchor_embedding",
    "max_class_score",
    "keep_in_graph",
    "build_heads",
    "build_pyramid",
    "contrastive_queries",
    "decay_by_depth",
    "first_class_score",
    "layer_weights",
    "learned_queries",
    "noised_queries",
    "predict",
    "prepare_targets",
    "proposal_embedding",
    "propose",
    "refine_boxes",
    "scale_by_name",
    "select_top",
    "split_denoising",
]
