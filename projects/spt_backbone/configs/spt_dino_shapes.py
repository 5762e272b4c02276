"""SPT under DINO on the shapes data set, fine-tuned from the dense narrow Swin."""

from spt_backbone.config import watch_selection
from tokendetr.config import checkpoint_file

from ...dino.configs.dino_shapes import dataloader, lr_multiplier, optimizer, train
from .models.spt_dino_shapes import model

watch_selection(dataloader.evaluator)

# At the paper's threshold of .01 nearly everything is selected, however long the gates learn: a
# linear gate fitted to convergence on these features kept 96 to 100 % of the tokens there (an
# earlier study, not repeated).
model.backbone.threshold = 0.3
model.backbone.evaluation_threshold = 0.5
model.backbone.selection_loss_weight = 0.2

train.init_checkpoint = checkpoint_file("dino_shapes_swin")
train.init_checkpoint_strict = False  # the gates are new
train.output_dir = "./output/spt_dino_shapes"
train.max_iter = 1000
train.eval_period = 500

optimizer.lr = 2e-4
train.clip_grad.params.max_norm = 0.1
