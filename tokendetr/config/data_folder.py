"""Train and evaluate a config on a folder of labeled images, which gives the number of classes.

tokendetr train --config-file dino_shapes train.data_folder=my_cells train.output_dir=output/cells
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from omegaconf import DictConfig, ListConfig, OmegaConf

from tokendetr.config.registration import register_coco_format
from tokendetr.config.wrap import target_name
from tokendetr.errors import ConfigError, DatasetError
from tokendetr.io.annotations import AnnotationError, read_annotations
from tokendetr.io.atomic import write_atomically
from tokendetr.io.label_folders import LabelFolder, recognize, split_at_random, to_coco

__all__ = [
    "AUTO",
    "count_classes",
    "record_data_files",
    "register_recorded_files",
    "use_data_folder",
]

AUTO = "auto"
"""Value of ``num_classes`` to be replaced by the number of categories of the training data."""

VAL_SHARE = 0.2
"""Share of the images used for validation if a folder has only one split, or none."""

CLASS_KEYS = ("model.num_classes", "model.roi_heads.num_classes")

logger = logging.getLogger(__name__)


def use_data_folder(cfg: DictConfig, starting_weights: str | None = None) -> None:
    """Make a config train and evaluate on the folder ``train.data_folder``, in place.

    The folder holds COCO JSON, Pascal VOC XML or YOLO labels
    (:func:`tokendetr.io.label_folders.recognize`). Its splits become the data sets
    ``own_<folder>_<split>``: training uses ``train`` (else ``trainval``), evaluation ``val`` (else
    ``test``). If there is at most one, a fifth of the images is used for validation. Converted
    labels, and the two parts of a folder with one, are written as COCO JSON below
    ``train.output_dir``. The number of classes is that of the data.

    Args:
        cfg: the whole config, with the defaults of ``train`` filled in.
        starting_weights: the trained weights that come with the config; training starts from them
            if the config names no others. Heads with another number of classes keep their initial
            weights.

    Raises:
        FileNotFoundError: there is no such folder.
        DatasetError: no format is recognized, or a label cannot be read; the message says which.
    """
    folder = str(cfg.train.data_folder or "")
    if not folder:
        return
    root = Path(os.path.expanduser(folder))
    if not root.is_dir() and _is_prepared(cfg):
        # The config.yaml of a run, used for prediction on a machine without the data.
        logger.warning(
            "train.data_folder=%s does not exist: class names are read from the run's annotations, "
            "if these exist",
            folder,
        )
        return
    found = recognize(root)
    cfg.train.data_folder = os.path.realpath(root)  # a run's config is used from other folders too
    files = _files(found, Path(str(cfg.train.output_dir)) / "data")
    train = next((files[name] for name in ("train", "trainval") if name in files), None)
    tested = next((files[name] for name in ("val", "test") if name in files), None)
    if train is None or tested is None:
        raise DatasetError(
            f"{root} has the splits {', '.join(files)}: one must be named train and one val or test"
        )
    for name, (images, json_file) in files.items():
        register_coco_format(_name(root, name), str(json_file), str(images))
    names = {str(path): _name(root, name) for name, (_, path) in files.items()}
    _point_at(cfg.dataloader, names[str(train[1])], names[str(tested[1])])
    for key in CLASS_KEYS:
        if OmegaConf.select(cfg, key, default=None) is not None:
            OmegaConf.update(cfg, key, AUTO, force_add=True)
    count_classes(cfg)
    if not cfg.train.init_checkpoint and starting_weights:
        cfg.train.init_checkpoint = starting_weights


def count_classes(cfg: DictConfig) -> None:
    """Replace ``num_classes=auto`` by the number of categories of the training data, in place.

    Raises:
        ConfigError: the training data is not in COCO's format.
        DatasetError, FileNotFoundError: its annotations cannot be read.
    """
    keys = [key for key in CLASS_KEYS if OmegaConf.select(cfg, key, default=None) == AUTO]
    if not keys:
        return
    names = OmegaConf.select(cfg, "dataloader.train.dataset.names", default=None)
    name = names if isinstance(names, str) else names[0] if names else ""
    metadata = MetadataCatalog.get(name) if name in DatasetCatalog else None
    json_file = None if metadata is None else metadata.get("json_file", None)
    if metadata is None or json_file is None:
        raise ConfigError(
            f"{keys[0]}={AUTO} counts the categories of a COCO JSON, but the training data set "
            f"{name!r} is not registered with one: give the number of classes"
        )
    prepare = metadata.get("prepare", None)
    if prepare is not None:
        prepare()
    count = len(_read(Path(str(json_file)))["categories"])
    for key in keys:
        OmegaConf.update(cfg, key, count)


def record_data_files(cfg: DictConfig) -> None:
    """Record the files of a config's data sets in ``train.data_files``, in place.

    A run's ``config.yaml`` is plain data. Unlike the Python config that it came from, it registers
    no data sets, so it could not find its own again without this record.
    """
    found = {}
    for part in ("train", "test"):
        names = OmegaConf.select(cfg, f"dataloader.{part}.dataset.names", default=None) or []
        for name in [names] if isinstance(names, str) else names:
            if name not in DatasetCatalog:
                continue
            metadata = MetadataCatalog.get(name)
            json_file = metadata.get("json_file", None)
            if json_file is not None and metadata.get("evaluator_type", "coco") == "coco":
                paths = (str(json_file), str(metadata.image_root))
                found[str(name)] = [os.path.abspath(path) for path in paths]
    cfg.train.data_files = found


def register_recorded_files(cfg: DictConfig) -> None:
    """Register the data sets of ``train.data_files`` that are not registered yet.

    Raises:
        ConfigError: an entry is not a pair of paths.
    """
    recorded = cfg.train.data_files or {}
    if recorded and not OmegaConf.is_dict(recorded):
        raise ConfigError(f"train.data_files={recorded} must be a group: name -> two paths")
    for name, files in recorded.items():
        if not isinstance(files, ListConfig) or [type(each) for each in files] != [str, str]:
            raise ConfigError(
                f"train.data_files.{name} is {files}, not two paths: its annotations and the "
                "folder of its images"
            )
        json_file, image_root = files
        if name not in DatasetCatalog:
            register_coco_format(str(name), str(json_file), str(image_root))


def _is_prepared(cfg: DictConfig) -> bool:
    """Return True for a config that :func:`use_data_folder` has edited."""
    name = OmegaConf.select(cfg, "dataloader.test.dataset.names", default="")
    return isinstance(name, str) and name.startswith("own_")


def _name(root: Path, split: str) -> str:
    return f"own_{root.resolve().name}_{split}"


def _files(found: LabelFolder, output: Path) -> dict[str, tuple[Path, Path]]:
    """Return image folder and COCO JSON of every split; write the JSON if there is none."""
    if found.kind == "coco":
        files = {name: (part.images, Path(part.labels[0])) for name, part in found.parts.items()}
        if len(files) > 1:
            return files
        data = {name: (images, _read(path)) for name, (images, path) in files.items()}
    else:
        data = to_coco(found)
    if len(data) == 1:
        images, whole = next(iter(data.values()))
        halves = split_at_random(whole, VAL_SHARE)
        data = {name: (images, half) for name, half in halves.items()}
    return {
        name: (images, _stored(output / f"{name}.json", d)) for name, (images, d) in data.items()
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_annotations(str(path)).data
    except AnnotationError as error:
        raise DatasetError(str(error)) from error


def _stored(path: Path, data: Mapping[str, Any]) -> Path:
    """Write a JSON file and return its path; a file with this content keeps its time stamp."""
    content = json.dumps(data).encode()
    if not path.is_file() or path.read_bytes() != content:
        os.makedirs(path.parent, exist_ok=True)
        write_atomically(str(path), content)
    return path


def _point_at(dataloader: DictConfig, train: str, tested: str) -> None:
    """Make the loaders read two registered data sets, and COCO's evaluator the second one."""
    dataloader.train.dataset.names = train
    dataloader.test.dataset.names = tested
    evaluator = dataloader.get("evaluator", None)
    if isinstance(evaluator, DictConfig) and "COCO" in target_name(evaluator.get("_target_")):
        evaluator.dataset_name = "${dataloader.test.dataset.names}"
    else:
        dataloader.evaluator = L(COCOEvaluator)(
            dataset_name="${dataloader.test.dataset.names}", output_dir="${train.output_dir}"
        )
