"""Run a detector on images; detections are in pixels of the original image."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.key_names import grouped_keys, shortened
from tokendetr.checkpoint.weights import load_weights
from tokendetr.config.model import model_of
from tokendetr.data.builtin_datasets import register_if_known
from tokendetr.errors import ConfigError
from tokendetr.io.images import IMAGE_SUFFIXES
from tokendetr.layers.cpu import optimize
from tokendetr.layers.precision import Precision, check_precision, evaluated_in

__all__ = [
    "Predictor",
    "build_model",
    "build_trained_model",
    "coco_results",
    "dataset_metadata",
    "find_images",
]

logger = logging.getLogger(__name__)


def build_model(cfg: DictConfig) -> nn.Module:
    """Build a config's model with the weights of ``train.init_checkpoint``, in evaluation mode.

    The moving average of the weights is used if the config evaluates only that, or if the
    checkpoint was selected by it.

    Raises:
        ConfigError: the model cannot be built.
        FileNotFoundError, CheckpointError: the checkpoint cannot be used.
    """
    model = model_of(cfg)
    if cfg.train.init_checkpoint:
        ema = cfg.train.model_ema
        only_average = ema.enabled and ema.use_ema_weights_for_eval_only
        report = load_weights(
            AtomicCheckpointer(model),
            cfg.train.init_checkpoint,
            strict=cfg.train.init_checkpoint_strict,
            choice="ema_if_kept" if only_average else "auto",
        )
        if left := report.not_loaded:
            logger.warning(
                "%s does not set %d of the model's tensors, which keep their initial weights: %s",
                cfg.train.init_checkpoint,
                len(left),
                shortened(grouped_keys(left)),
            )
    else:
        logger.warning("train.init_checkpoint is empty: the weights are random")
    return model.eval()


def build_trained_model(cfg: DictConfig) -> nn.Module:
    """Build a config's model with its weights, optimized, for results that depend on them.

    Raises:
        ConfigError: the config names no weights, or the model cannot be built.
        FileNotFoundError, CheckpointError: the checkpoint cannot be used.
    """
    if not cfg.train.init_checkpoint:
        raise ConfigError("the config names no weights: add train.init_checkpoint=FILE")
    model = build_model(cfg)
    optimize(model)
    return model


class Predictor:
    """Resize images and run a detector on them.

    Args:
        model: a detectron2-style model in evaluation mode.
        min_size: length in pixels that an image's shorter side is resized to.
        max_size: upper limit of the longer side in pixels.
        img_format: channel order that the model was trained with, "RGB" or "BGR".
        precision: "float32", or "bfloat16" (or "bf16") for autocast.

    Raises:
        ValueError: another precision is given.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        min_size: int = 800,
        max_size: int = 1333,
        img_format: str = "RGB",
        precision: Precision = "float32",
    ) -> None:
        check_precision(precision)
        self.precision = precision
        self.model = model
        optimize(model)
        self.img_format = img_format
        self.resize = T.ResizeShortestEdge([min_size, min_size], max_size)

    @classmethod
    def from_config(
        cls,
        cfg: DictConfig,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        img_format: str | None = None,
        model: nn.Module | None = None,
        precision: Precision = "float32",
    ) -> Predictor:
        """Make a predictor for a config.

        Args:
            cfg: the config.
            min_size, max_size, img_format: see the class; None for those of the test mapper.
            model: the config's model; None to build it (:func:`build_model`).
            precision: see the class.
        """
        mapper = OmegaConf.select(cfg, "dataloader.test.mapper", default=None) or {}
        short, long = _test_size(mapper)
        return cls(
            build_model(cfg) if model is None else model,
            min_size=min_size or short,
            max_size=max_size or long,
            img_format=img_format or mapper.get("img_format", "RGB"),
            precision=precision,
        )

    def inputs(self, image_HWC: NDArray[np.uint8]) -> dict[str, Any]:
        """Return the model's input for an RGB image: the resized image and the original size.

        Raises:
            ValueError: the image is not uint8 [H, W, 3], or has no pixels.
        """
        check_rgb(image_HWC, "the image")
        height, width = image_HWC.shape[:2]
        if self.img_format == "BGR":
            image_HWC = image_HWC[:, :, ::-1]
        resized = self.resize.get_transform(image_HWC).apply_image(image_HWC)
        image_CHW = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": image_CHW, "height": height, "width": width}

    def __call__(self, image_HWC: NDArray[np.uint8]) -> Instances:
        """Detect objects in an RGB uint8 image.

        Returns:
            ``Instances`` on the CPU, best first; boxes are in the image's pixels.
        """
        return self.batch([image_HWC])[0]

    @torch.no_grad()
    def batch(self, images_HWC: Sequence[NDArray[np.uint8]]) -> list[Instances]:
        """Detect objects in several RGB uint8 images in one pass; see :meth:`__call__`."""
        if not images_HWC:
            return []
        with evaluated_in(self.precision, self.model):
            outputs = self.model([self.inputs(image) for image in images_HWC])
        found: list[Instances] = [output["instances"].to("cpu") for output in outputs]
        return [each[each.scores.argsort(descending=True)] for each in found]


def check_rgb(image_HWC: Any, name: str) -> None:
    """Check that an array is an image as detectors take it: uint8 [H, W, 3].

    Other types and numbers of channels would give wrong detections rather than an error.

    Args:
        image_HWC: the array.
        name: what to call it in the message.

    Raises:
        ValueError: it is something else, or has no pixels.
    """
    shape: tuple[int, ...] = tuple(getattr(image_HWC, "shape", ()))
    dtype = getattr(image_HWC, "dtype", None)
    if len(shape) != 3 or shape[-1] != 3 or dtype != np.uint8 or 0 in shape:
        kind = f"an array {list(shape)} of {dtype}" if dtype else f"a {type(image_HWC).__name__}"
        raise ValueError(f"{name} is {kind}: it must be [H, W, 3] (RGB) of uint8")


def _test_size(mapper: Any) -> tuple[int, int]:
    """Return shorter side and limit of the longer one of a test mapper; default (800, 1333)."""
    for node in mapper.get("augmentation", None) or []:
        short = node.get("short_edge_length", None)
        if short is not None:
            short = short if isinstance(short, int) else max(short)
            return int(short), int(node.get("max_size", 1333))
    return 800, 1333


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Return the images that files, folders (all images in them) and glob patterns denote.

    Raises:
        FileNotFoundError: there is no image for one of the inputs.
    """
    found: dict[Path, None] = {}  # in order, each once
    for entry in inputs:
        path = Path(os.path.expanduser(entry))
        if entry and path.is_dir():
            candidates = sorted(path.iterdir())
            # Hidden ones, as in archives made on a Mac, are no images; nor are pipes.
            files = [
                file
                for file in candidates
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not file.name.startswith(".")
                and not (file.is_fifo() or file.is_dir())
            ]
        elif path.is_file():
            files = [path]
        else:
            names = glob(str(path)) if entry else ()
            files = sorted(Path(name) for name in names if Path(name).is_file())
        if not files:
            raise FileNotFoundError(
                f"no image at {entry!r}: give files, folders or patterns of "
                f"{', '.join(IMAGE_SUFFIXES)} files"
            )
        found.update(dict.fromkeys(files))
    return list(found)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read an image of any mode as uint8 RGB [H, W, 3], with its EXIF orientation applied.

    Raises:
        OSError: the file is not an image, or damaged; the message names it.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait forever
        raise OSError(f"{path} is not a readable image: it is a folder, a pipe or a device")
    try:
        image: NDArray[np.uint8] = np.asarray(utils.read_image(str(path), format="RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise OSError(f"{path} is not a readable image: {error}") from error
    return image


def dataset_metadata(cfg: DictConfig, name: str | None = None) -> Any:
    """Return the metadata (class names, category ids) of a registered data set.

    Args:
        cfg: the config.
        name: name of the data set; None for the config's test set.

    Raises:
        KeyError: the data set is not registered.
    """
    if name is None:
        names = OmegaConf.select(cfg, "dataloader.test.dataset.names", default="coco_2017_val")
        name = names if isinstance(names, str) else names[0]
    register_if_known(name)
    if name not in DatasetCatalog.list():
        raise KeyError(f"no data set is registered as {name!r}: {DatasetCatalog.list()}")
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes", None) is None:
        # Reading a registered JSON sets its names and ids.
        try:
            DatasetCatalog.get(name)
        except (OSError, ValueError) as error:
            logger.warning("%s: class names and ids are unknown: %s", name, error)
    return metadata


def coco_results(
    instances: Instances, *, image_id: int, metadata: Any, file_name: str
) -> list[dict[str, Any]]:
    """Return detections in COCO's result format, with the image's file name added.

    Args:
        instances: ``pred_boxes`` in pixels, ``scores``, ``pred_classes``.
        image_id: id of the image.
        metadata: metadata of the data set, which maps classes to category ids if it can.
        file_name: stored in every record.
    """
    to_class = metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
    category_ids = {number: category for category, number in to_class.items()}
    boxes = instances.pred_boxes.tensor
    return [
        {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": category_ids.get(number, number),
            "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(score, 6),
        }
        for (x0, y0, x1, y1), score, number in zip(
            boxes.tolist(),
            instances.scores.tolist(),
            instances.pred_classes.tolist(),
            strict=True,
        )
    ]
