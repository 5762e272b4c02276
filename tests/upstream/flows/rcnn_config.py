"""One of this project's configs for detectron2's R-CNNs, narrow, on a tiny data set.

The environment says which: ``FLOW_CONFIG`` (a name of the zoo), ``FLOW_DATA``, ``FLOW_OUTPUT``.
"""

import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tests.train.toy import NUM_CLASSES
from tokendetr.config import zoo

_config = zoo.get_config(os.environ["FLOW_CONFIG"])
dataloader, lr_multiplier, model = _config.dataloader, _config.lr_multiplier, _config.model
optimizer, train = _config.optimizer, _config.train

# Under the names that the config has already, as its users' data would be.
_root = Path(os.environ["FLOW_DATA"])
for _loader in (dataloader.train, dataloader.test):
    _name = _loader.dataset.names
    if _name in DatasetCatalog:
        DatasetCatalog.remove(_name)
        MetadataCatalog.remove(_name)
    register_coco_instances(_name, {}, str(_root / "annotations.json"), str(_root / "images"))
    _loader.num_workers = 0
dataloader.train.total_batch_size = 2
for _step in (*dataloader.train.mapper.augmentations, *dataloader.test.mapper.augmentations):
    if "short_edge_length" in _step:
        _step.short_edge_length, _step.max_size = 64, 96
model.roi_heads.num_classes = NUM_CLASSES
model.backbone.bottom_up.depths = (1, 1, 2, 1)
model.backbone.bottom_up.embed_dim, model.backbone.bottom_up.num_heads = 24, (1, 2, 3, 6)
train.device = "cpu"
train.amp.enabled = False  # detectron2's AMPTrainer asks for CUDA
train.init_checkpoint, train.output_dir, train.seed = "", os.environ["FLOW_OUTPUT"], 1
train.max_iter, train.eval_period, train.log_period = 2, 0, 1
