from detectron2.config import LazyCall as L

from tokendetr.config import sparsify
from tokendetr.detector import ProposalCriterion, layer_weights

from ....common.matching import matcher, weights
from ....deformable_detr.configs.models.deformable_detr_r50 import layers, model
from .sparse_sparsifier import sparsifier

# The published detector: box refinement, and queries that start as the best tokens of any class.
model.with_box_refine = True
model.as_two_stage = True
model.transformer.content_from_memory = True
model.transformer.any_class_proposals = True
model.transformer.decoder.reference_edge = 1e-5
model.criterion = L(ProposalCriterion)(
    num_classes="${..num_classes}",
    matcher=matcher,
    weight_dict=layer_weights(
        {**weights, "loss_class": 2.0}, num_layers=layers["num_layers"], suffixes=["_enc"]
    ),
)
model.backbone.freeze_at = 2

sparsify(model, sparsifier)
