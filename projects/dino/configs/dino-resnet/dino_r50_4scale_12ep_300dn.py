from .dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train

model.dn_number = 300

train.output_dir = "./output/dino_r50_4scale_12ep_300dn"
