from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import SwinTransformer

from .dino_r50 import model
from .pyramid import put_backbone, three_stages

swin = L(SwinTransformer)(
    pretrain_img_size=224,
    embed_dim=96,
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    window_size=7,
    drop_path_rate=0.1,
    out_indices=(1, 2, 3),
)
put_backbone(model, swin, three_stages(96))
