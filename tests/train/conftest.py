"""A toy run that tests change as they need."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from tests.train import toy
from tokendetr.config.load import fill_defaults
from tokendetr.train.run import train


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy_data")
    toy.write_dataset(root)
    return root


@pytest.fixture(scope="session")
def toy_run(toy_root):
    """run(output_dir, "key=value", ..., resume=False, hook=None) -> the trained model."""

    def run(output_dir, *overrides, resume=False, interrupt_at=None, root=None):
        cfg = toy.make_config(root or toy_root, output_dir)
        fill_defaults(cfg)
        LazyConfig.apply_overrides(cfg, list(overrides))
        torch.manual_seed(cfg.train.seed)
        model = instantiate(cfg.model)
        if interrupt_at is not None:
            calls = [0]

            def interrupt(module, args):
                if module.training:
                    calls[0] += 1
                    if calls[0] > interrupt_at:
                        raise KeyboardInterrupt("the test stops the run here")

            model.register_forward_pre_hook(interrupt)
        train(cfg, model, resume=resume)
        return model

    return run


@pytest.fixture(scope="module")
def finished(toy_run, tmp_path_factory):
    """Train once; the tests that change the run copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    toy_run(folder, *toy.FEW)
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))
