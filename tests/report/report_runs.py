"""A training and an evaluation with everything that a report reads, made without training."""

import json
from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig

from tests.train import toy
from tokendetr.config import load_config
from tokendetr.config.data_folder import record_data_files

NAMES = ("sparse_run", "dynamic_run")
CONFIGS = ("sparse_dino_shapes", "dynamic_dino_shapes")


def write_runs(root: Path) -> list[str]:
    """Make a folder per run; returns the folders."""
    data = root / "cells"
    for split, seed in (("train", 0), ("val", 1)):
        toy.write_dataset(data, num_images=6, seed=seed)
        (data / "annotations.json").rename(data / f"{split}.json")
    folders = []
    for name, config in zip(NAMES, CONFIGS, strict=True):
        folder = root / name
        cfg = load_config(config, [f"train.data_folder={data}", f"train.output_dir={folder}"])
        folder.mkdir()
        write_run(cfg, folder, data, is_training=not folders)
        folders.append(str(folder))
    return folders


def write_run(cfg: DictConfig, folder: Path, data: Path, *, is_training: bool) -> None:
    torch.manual_seed(0)
    record_data_files(cfg)
    weights = folder / ("model_final.pth" if is_training else "weights.pth")
    torch.save({"model": instantiate(cfg.model).state_dict()}, weights)
    if not is_training:
        cfg.train.init_checkpoint = str(weights)
    LazyConfig.save(cfg, str(folder / ("config.yaml" if is_training else "config_evaluation.yaml")))
    rows = [
        {"iteration": 10 * n, "total_loss": 9.0 / (1 + n), "lr": 1e-4, **(
            {"bbox/AP": 3.0 * n} if n % 3 == 0 else {})}
        for n in range(10)
    ]  # fmt: skip
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    truth = json.loads((data / "val.json").read_text())
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"],
         "score": 0.3 + 0.6 * (a["id"] % 7) / 7}
        for a in truth["annotations"] if a["id"] % 4
    ]  # fmt: skip
    (folder / "coco_instances_results.json").write_text(json.dumps(results))
