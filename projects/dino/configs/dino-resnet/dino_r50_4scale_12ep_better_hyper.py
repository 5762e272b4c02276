from .dino_r50_4scale_12ep_300dn import dataloader, lr_multiplier, model, optimizer, train

model.backbone.freeze_at = -1
for name in model.criterion.weight_dict:
    if name.startswith("loss_class") and "_dn" not in name:
        model.criterion.weight_dict[name] = 2.0

train.output_dir = "./output/dino_r50_4scale_12ep_better_hyper"
