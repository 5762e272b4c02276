from detectron2.config import LazyCall as L

from focus_detr import FocusSparsifier

# Sizes follow the encoder that holds the sparsifier.
sparsifier = L(FocusSparsifier)(
    embed_dim="${..embed_dim}",
    num_heads="${..num_heads}",
    num_layers="${..num_layers}",
    num_levels="${..num_feature_levels}",
    keep_ratio=0.3,
    num_objects=300,
    modulation="top_down",
    strides=[8, 16, 32, 64],
    size_ranges=None,
    loss_weight=1.5,
    fine_score="probability",
    mask_padding=True,
    counts="per_image",
    value_policy="updated",
)
