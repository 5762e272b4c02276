from .cascade_mask_rcnn_spt_base_36ep import dataloader, lr_multiplier, model, optimizer, train
from .models.bdd100k import on_bdd100k

on_bdd100k(model, dataloader, train)

train.output_dir = "./output/cascade_mask_rcnn_spt_base_bdd100k_36ep"
