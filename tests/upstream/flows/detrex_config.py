"""A config of detrex's own, unmodified, with an encoder of this project and a tiny data set.

Read by detrex's programs in its checkout. The environment says which config and method:
``FLOW_CONFIG`` (a path in detrex's checkout), ``FLOW_METHOD``, ``FLOW_DATA`` and ``FLOW_OUTPUT``.
"""

import os
from inspect import signature
from pathlib import Path

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.utils.registry import locate

from dynamic_detr import DynamicSparsifier
from focus_detr import FocusSparsifier
from sparse_detr import SparseSparsifier
from tests.train.toy import NUM_CLASSES, register
from tokendetr.config import sparsify, target_name

QUERIES = 60

_config = LazyConfig.load(os.environ["FLOW_CONFIG"])
dataloader, lr_multiplier, model = _config.dataloader, _config.lr_multiplier, _config.model
optimizer, train = _config.optimizer, _config.train

_class = locate(target_name(model["_target_"]))
assert not _class.__module__.startswith("tokendetr"), f"{_class} is not detrex's"

# The data set, small images, few queries: all that differs from detrex's file but the encoder.
register("flow", Path(os.environ["FLOW_DATA"]))
for _loader in (dataloader.train, dataloader.test):
    _loader.dataset.names = "flow"
    _loader.num_workers = 0
    _loader.mapper.augmentation_with_crop = None
    _sizes = _loader.mapper.augmentation[-1]
    _sizes.short_edge_length, _sizes.max_size = 96, 128
dataloader.train.total_batch_size = 2
dataloader.evaluator.dataset_name = "flow"
dataloader.evaluator.output_dir = os.environ["FLOW_OUTPUT"]
model.num_classes = model.criterion.num_classes = NUM_CLASSES
for _key in ("num_queries", "num_queries_one2one"):
    if _key in model:
        model[_key] = QUERIES
model.select_box_nums_for_evaluation = QUERIES  # not every config says it; the default is 300
if "num_queries_one2many" in model:
    model.num_queries_one2many = QUERIES
    model.transformer.two_stage_num_proposals = 2 * QUERIES
model.device = train.device = "cpu"
train.init_checkpoint, train.output_dir, train.seed = "", os.environ["FLOW_OUTPUT"], 1
train.log_period = 1

# DINO always has two stages, and no such argument.
_two_stage = model.get("as_two_stage", "as_two_stage" not in signature(_class).parameters)
_sizes = dict(embed_dim="${..embed_dim}", num_layers="${..num_layers}")
_methods = {
    "dynamic": lambda: L(DynamicSparsifier)(),
    "focus": lambda: L(FocusSparsifier)(
        **({} if _two_stage else dict(num_classes="${....num_classes}"))
    ),
    "sparse": lambda: L(SparseSparsifier)(
        **_sizes,
        num_classes="${....num_classes}",
        projection="detector" if _two_stage else "own",
    ),
}
if os.environ["FLOW_METHOD"] in _methods:
    sparsify(model, _methods[os.environ["FLOW_METHOD"]]())
