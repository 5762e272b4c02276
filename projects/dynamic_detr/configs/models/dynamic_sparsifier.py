from detectron2.config import LazyCall as L

from dynamic_detr import DynamicSparsifier

sparsifier = L(DynamicSparsifier)(
    keep_ratios=(0.5, 0.4, 0.3, 0.2),
    level_orders=((1, 2, 3, 4), (3, 2, 4, 1), (4, 3, 2, 1)),
    stage_lengths=(2, 3, 1),
    window_sizes=(8, 4, 2),
    num_neighbors=3,
    alignment="two_pass",
    alignment_weight=0.1,
)
