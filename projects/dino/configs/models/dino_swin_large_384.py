from .dino_swin_base_384 import model
from .pyramid import put_backbone, three_stages

swin = model.backbone
swin.embed_dim = 192
swin.num_heads = (6, 12, 24, 48)
put_backbone(model, swin, three_stages(192))
