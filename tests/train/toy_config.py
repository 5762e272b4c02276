"""The toy detector as a config file; folders of data and output come from the environment."""

import os
from pathlib import Path

from tests.train.toy import make_config

_cfg = make_config(Path(os.environ["TOY_ROOT"]), Path(os.environ["TOY_OUTPUT"]))
dataloader, model, optimizer = _cfg.dataloader, _cfg.model, _cfg.optimizer
lr_multiplier, train = _cfg.lr_multiplier, _cfg.train
