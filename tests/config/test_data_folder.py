"""A folder of one's own images: recognized by a config, trained on, and tabled."""

import csv
import json
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf

from tests.io.label_files import write_voc
from tests.train import toy
from tokendetr import fit
from tokendetr.config import load_config
from tokendetr.config.load import fill_defaults
from tokendetr.data.builtin_datasets import register_if_known
from tokendetr.data.config_hints import config_hints
from tokendetr.data.validate import coco_files
from tokendetr.errors import ConfigError, DatasetError


def coco_folder(root, **splits: int):
    """A folder with a JSON of so many images for every split."""
    for name, count in splits.items():
        toy.write_dataset(root, num_images=count)
        (root / "annotations.json").rename(root / f"{name}.json")
    return root


def load(root, output, *overrides: str):
    own = [f"train.data_folder={root}", f"train.output_dir={output}"]
    return load_config("dino_shapes", [*own, *overrides])


def test_a_voc_folder_gives_classes_data_sets_and_starting_weights(tmp_path):
    pytest.importorskip("hotcoco", reason="hotcoco reads VOC labels")
    root = write_voc(tmp_path / "pets", {"train": ["a"], "test": ["b"]})
    cfg = load(root, tmp_path / "run")
    assert cfg.model.num_classes == cfg.model.criterion.num_classes == 2
    assert cfg.dataloader.train.dataset.names == "own_pets_train"
    # Without a validation set, training evaluates on the test set.
    assert cfg.dataloader.test.dataset.names == "own_pets_test"
    assert cfg.dataloader.evaluator.dataset_name == "own_pets_test"
    assert cfg.train.init_checkpoint.endswith("dino_shapes.safetensors")
    files = coco_files("own_pets_train")
    assert files.image_root == str(root / "JPEGImages")
    assert json.loads((tmp_path / "run/data/train.json").read_text())["images"][0]["file_name"]
    # The run's own config finds the same data again, and another machine does without.
    OmegaConf.save(OmegaConf.create({"train": cfg.train}), tmp_path / "part.yaml")
    assert sorted(path.name for path in root.iterdir()) == [
        "Annotations",
        "ImageSets",
        "JPEGImages",
    ]


def test_overrides_win_over_the_folder(tmp_path):
    root = coco_folder(tmp_path / "cells", train=6, val=4, test=3)
    cfg = load(root, tmp_path / "run", "dataloader.test.dataset.names=own_cells_test",
               "train.init_checkpoint=mine.pth")  # fmt: skip
    assert cfg.dataloader.evaluator.dataset_name == "own_cells_test"
    assert cfg.train.init_checkpoint == "mine.pth"
    assert not (tmp_path / "run").exists()  # COCO's JSON is used in place


def test_one_file_is_divided_the_same_way_every_time(tmp_path):
    root = coco_folder(tmp_path / "cells", annotations=10)
    counts = []
    for _ in range(2):
        load(root, tmp_path / "run")
        parts = {
            n: json.loads((tmp_path / f"run/data/{n}.json").read_text()) for n in ("train", "val")
        }
        counts.append({n: [i["id"] for i in part["images"]] for n, part in parts.items()})
    assert counts[0] == counts[1]
    assert [len(ids) for ids in counts[0].values()] == [8, 2]


def test_the_only_list_of_a_voc_folder_is_divided(tmp_path):
    pytest.importorskip("hotcoco", reason="hotcoco reads VOC labels")
    cfg = load(write_voc(tmp_path / "pets", {"default": ["a", "b"]}), tmp_path / "run")
    assert cfg.dataloader.train.dataset.names == "own_pets_train"
    assert cfg.dataloader.test.dataset.names == "own_pets_val"


def test_a_run_predicts_without_its_data(tmp_path, caplog):
    root = coco_folder(tmp_path / "cells", train=6, val=4)
    cfg = load(root, tmp_path / "run")
    shutil.rmtree(root)
    saved = {"train": cfg.train, "model": {"num_classes": 3}, "dataloader": {
        part: {"dataset": {"names": f"own_cells_{name}"}} for part, name in
        (("train", "train"), ("test", "val"))}}  # fmt: skip
    OmegaConf.save(OmegaConf.create(saved), tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")).model.num_classes == 3
    assert "does not exist: class names" in caplog.text


def test_auto_counts_the_categories_of_the_training_data(tmp_path):
    toy.register("toy_auto", toy.write_dataset(tmp_path).parent)
    names = ["dataloader.train.dataset.names=toy_auto", "dataloader.test.dataset.names=toy_auto"]
    cfg = load_config("dino_shapes", ["model.num_classes=auto", *names])
    assert cfg.model.num_classes == toy.NUM_CLASSES
    with pytest.raises(ConfigError, match="give the number"):
        load_config("dino_shapes", ["model.num_classes=auto",
                                    "dataloader.train.dataset.names=nobody_knows"])  # fmt: skip


def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(DatasetError, match="has no COCO JSON"):
        load(tmp_path, tmp_path / "run")
    root = coco_folder(tmp_path / "broken", annotations=4)
    text = (root / "annotations.json").read_text()
    (root / "annotations.json").write_text(text.replace('"id": 2,', "", 1))
    with pytest.raises(
        DatasetError, match=r"annotations\.json has 1 fault:\n  image number 1 has no id"
    ):
        load(root, tmp_path / "run")
    with pytest.raises(DatasetError, match="one must be named train"):
        load(coco_folder(tmp_path / "odd", spring=3, autumn=3), tmp_path / "run")


def test_hints_name_what_the_sizes_mean(tmp_path):
    root = coco_folder(tmp_path / "cells", train=6, val=4)
    edge = "dataloader.train.mapper.augmentation.1.short_edge_length=[14]"
    text = "\n".join(config_hints(load(root, tmp_path / "run", edge, "model.num_queries=3")))
    assert "28 pixels (median) are resized to a short side of 14" in text
    assert "short_edge_length" in text
    assert "set model.num_queries=8 or more" in text
    assert "A batch of 8 is larger than the data set of 6 images" in text
    short = load(root, tmp_path / "run", "train.max_iter=4", "dataloader.train.total_batch_size=2")
    assert "for 8 epochs set train.max_iter=24" in "\n".join(config_hints(short))


def test_a_fitted_run_has_its_metrics_as_a_table_and_as_curves(tmp_path):
    toy.write_dataset(tmp_path)
    cfg = toy.make_config(tmp_path, tmp_path / "run")
    fill_defaults(cfg)
    cfg.train.log_period = 2
    results = fit(cfg)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    table = list(csv.DictReader((tmp_path / "run/results.csv").open()))
    assert [int(row["iteration"]) for row in table] == [row["iteration"] for row in rows]
    assert float(table[-1]["bbox/AP"]) == results["bbox"]["AP"]
    assert (tmp_path / "run/results.png").read_bytes().startswith(b"\x89PNG")
    # The run's config is plain data and still finds its data sets.
    DatasetCatalog.remove("toy")
    MetadataCatalog.remove("toy")
    load_config(str(tmp_path / "run/config.yaml"))
    assert coco_files("toy").image_root == str(tmp_path / "images")


def test_a_name_of_the_project_registers_its_data_set():
    for name in ("shapes_val", "bccd_test", "bdd100k_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_if_known(name)
        assert MetadataCatalog.get(name).json_file
    register_if_known("nobody_knows")
    assert "nobody_knows" not in DatasetCatalog
