from .mask_rcnn_spt_tiny_36ep import dataloader, lr_multiplier, model, optimizer, train
from .models.bdd100k import on_bdd100k

on_bdd100k(model, dataloader, train, name="bdd_s")

train.output_dir = "./output/mask_rcnn_spt_tiny_bdd_s_36ep"
