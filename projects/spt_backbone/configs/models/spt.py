"""SPT-T/16, SPT-S/28 and SPT-B/28: Swin-T, -S and -B with four more blocks in stage 3.

Other depths are an override, such as ``model.backbone.depths=[2,2,6,2]`` for SPT-T/12.
"""

from detectron2.config import LazyCall as L

from spt_backbone import SPT

spt_tiny = L(SPT)(
    pretrain_img_size=224,
    embed_dim=96,
    depths=(2, 2, 10, 2),
    num_heads=(3, 6, 12, 24),
    window_size=7,
    drop_path_rate=0.1,
    out_indices=(1, 2, 3),
    threshold=0.01,
    keep_ratio=None,
    selection_loss_weight=0.01,
    selection_labels="boxes",
    start_stage=3,
    ffn_on="all",
)
spt_small = L(SPT)(**{**spt_tiny, "depths": (2, 2, 22, 2), "drop_path_rate": 0.2})
spt_base = L(SPT)(
    **{**spt_small, "embed_dim": 128, "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.3}
)
