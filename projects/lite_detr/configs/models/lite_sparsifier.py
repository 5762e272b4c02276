from detectron2.config import LazyCall as L

from lite_detr import LiteSparsifier

# H3L1-(2+1)x3 of the paper.
sparsifier = L(LiteSparsifier)(
    embed_dim="${..embed_dim}",
    num_layers="${..num_layers}",
    num_levels="${..num_feature_levels}",
    high_levels=3,
    num_blocks=3,
    narrow_dim=256,
)
