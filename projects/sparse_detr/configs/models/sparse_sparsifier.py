from detectron2.config import LazyCall as L

from sparse_detr import SparseSparsifier

sparsifier = L(SparseSparsifier)(
    keep_ratio=0.3,
    embed_dim="${..embed_dim}",
    num_layers="${..num_layers}",
    num_heads="${..num_heads}",
    num_classes="${....num_classes}",
    selection="dam",
    projection="detector",
    auxiliary_heads=True,
    num_objects=0,
)
