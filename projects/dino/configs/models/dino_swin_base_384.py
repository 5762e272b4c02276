from .dino_swin_small_224 import model
from .pyramid import put_backbone, three_stages

swin = model.backbone
swin.pretrain_img_size = 384
swin.embed_dim = 128
swin.num_heads = (4, 8, 16, 32)
swin.window_size = 12
put_backbone(model, swin, three_stages(128))
