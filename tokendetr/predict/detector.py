"""A trained detector that accepts paths, arrays, tensors, folders and videos.

    from tokendetr import load

    detector = load("dino_shapes")
    results = detector("photo.jpg")

Shapes: H, W image, C channel.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps

from tokendetr.analysis.keep_ratio_search import keep_ratio_within
from tokendetr.config import zoo
from tokendetr.config.load import load_config
from tokendetr.config.run_folders import is_run_folder
from tokendetr.encoder.keep_ratio import set_keep_ratio
from tokendetr.errors import ConfigError, CutOffVideoError
from tokendetr.layers.precision import Precision, evaluated_in
from tokendetr.predict.detections import Detections
from tokendetr.predict.predictor import (
    Predictor,
    check_rgb,
    dataset_metadata,
    find_images,
    read_rgb,
)
from tokendetr.predict.video import read_frames

__all__ = ["Detector", "load"]

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
RANDOM = "random"


class Detector:
    """A trained detector with its class names.

    Args:
        predictor: resizes images and runs the model.
        names: class names.
        category_ids: the data set's category id of each class.
        weights: description of the weights' origin.
        threshold: minimum score of returned detections, in [0, 1].

    Raises:
        ValueError: the threshold is out of range.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        names: Sequence[str],
        category_ids: Sequence[int | str],
        weights: str,
        threshold: float = 0.3,
    ) -> None:
        self.predictor = predictor
        self.names = list(names)
        self.category_ids = list(category_ids)
        self.weights = weights
        self.threshold = _checked_threshold(threshold)

    @property
    def model(self) -> torch.nn.Module:
        """The detectron2-style model."""
        return self.predictor.model

    def __repr__(self) -> str:
        """Return the names of the model and its weights."""
        return f"Detector({type(self.model).__name__}, {len(self.names)} classes, {self.weights})"

    def __call__(
        self, images: Any, *, threshold: float | None = None, batch_size: int = 1
    ) -> Detections | list[Detections]:
        """Detect objects.

        Args:
            images: one image, or a list or tuple of images, each a path, a PIL image, a uint8 array
                [H, W, 3] in RGB order or [H, W], or a tensor [3, H, W] (uint8, or floating point in
                [0, 1]); or a folder, a glob pattern or a video file.
            threshold: minimum score; None for the detector's.
            batch_size: images per pass.

        Returns:
            The detections of one image; a list of them for several images, a folder, a pattern or a
            video.

        Raises:
            FileNotFoundError: a path does not exist.
            OSError: a file is not a readable image; the message names it.
            TypeError, ValueError: an object is not an image, or has an unsupported shape or dtype.
        """
        limit = self.threshold if threshold is None else _checked_threshold(threshold)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        several = isinstance(images, list | tuple) or _is_several(images)
        results: list[Detections] = []
        batch: list[tuple[str, NDArray[np.uint8]]] = []
        for entry in _images(images):
            batch.append(entry)
            if len(batch) >= batch_size:
                results += self._run(batch, limit)
                batch = []
        results += self._run(batch, limit)
        return results if several else results[0]

    def _run(
        self, batch: Sequence[tuple[str, NDArray[np.uint8]]], threshold: float
    ) -> list[Detections]:
        if not batch:
            return []
        found = self.predictor.batch([image for _, image in batch])
        return [
            Detections(
                instances=_above(instances, threshold),
                names=self.names,
                category_ids=self.category_ids,
                image_HWC=image,
                source=source,
            )
            for (source, image), instances in zip(batch, found, strict=True)
        ]

    def keep_within(self, max_ms: float) -> float:
        """Set the highest keep ratio at which an image of the test size takes at most ``max_ms``.

        Args:
            max_ms: time limit in milliseconds, measured on this machine under its current load.

        Returns:
            The keep ratio.

        Raises:
            NotSparsifiableError, TooSlowError, ValueError: as for
                :func:`tokendetr.analysis.keep_ratio_search.keep_ratio_within`.
        """
        resize = self.predictor.resize
        short = int(resize.short_edge_length[0])
        long = min(int(resize.max_size), round(4 / 3 * short))
        record = self.predictor.inputs(np.zeros((short, long, 3), np.uint8))
        with evaluated_in(self.predictor.precision, self.model):
            ratio, _ = keep_ratio_within(self.model, [record], max_ms)
        return ratio


def load(
    name: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    precision: Precision = "float32",
    threshold: float = 0.3,
    keep: float | None = None,
    max_ms: float | None = None,
    overrides: Sequence[str] = (),
) -> Detector:
    """Load a trained detector.

    Args:
        name: a config's name in the zoo (``dino_shapes``), a config file (``.py`` or ``.yaml``), or
            the folder of a run (:func:`tokendetr.predict.run_config`).
        weights: a checkpoint; None for the weights that come with the config, the run's best or
            last ones, or the config's ``train.init_checkpoint``; "random" for random ones.
        device: torch device; None for the GPU if there is one.
        precision: "float32", or "bfloat16" (or "bf16") for autocast.
        threshold: minimum score of returned detections, in [0, 1].
        keep: keep ratio in [0, 1], for a detector whose sparsifier has one.
        max_ms: time limit for one image of the config's test size (4 : 3), in milliseconds. The
            highest keep ratio within it, measured once on this machine, is set.
        overrides: overrides of the config, as ``key=value``.

    Returns:
        The detector.

    Raises:
        KeyError: there is no config of that name; the message lists the nearest ones.
        ConfigError: there are no trained weights, or an override cannot be used.
        FileNotFoundError: a file does not exist.
        CheckpointMismatchError: the checkpoint belongs to another model.
        NotSparsifiableError: ``keep`` or ``max_ms`` is given, but the detector has no keep ratio.
        TooSlowError: no keep ratio is fast enough.
        ValueError: both ``keep`` and ``max_ms`` are given, or an argument is out of range.
    """
    if keep is not None and max_ms is not None:
        raise ValueError("keep and max_ms both set the keep ratio: give one of them")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = os.path.expanduser(os.fspath(name))
    if not (is_run_folder(config) or config.endswith((".py", ".yaml", ".yml"))):
        config = str(zoo.get_config_file(config))
    cfg = load_config(config, [*overrides, f"train.device={device}"], trained=True)
    source = weights or cfg.train.init_checkpoint or None
    if source is None:
        raise ConfigError(
            f"no trained weights come with {name}: load({str(name)!r}, weights=FILE), or "
            f"weights={RANDOM!r} for an untrained network"
        )
    cfg.train.init_checkpoint = "" if source == RANDOM else str(source)
    predictor = Predictor.from_config(cfg, precision=precision)
    if keep is not None:
        set_keep_ratio(predictor.model, keep)
    names, ids = _classes(cfg)
    detector = Detector(
        predictor,
        names=names,
        category_ids=ids,
        weights=f"weights: {source}",
        threshold=threshold,
    )
    if max_ms is not None:
        detector.keep_within(max_ms)
    return detector


def _classes(cfg: DictConfig) -> tuple[list[str], list[int | str]]:
    """Return class names and category ids of a config's test data; numbers if it is unknown."""
    count = int(OmegaConf.select(cfg, "model.num_classes", default=0) or 0)
    try:
        metadata = dataset_metadata(cfg)
    except KeyError:
        return [str(index) for index in range(count)], list(range(count))
    names = list(metadata.get("thing_classes", None) or [str(index) for index in range(count)])
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
    category_ids = {index: category for category, index in contiguous.items()}
    return names, [category_ids.get(index, index) for index in range(len(names))]


def _checked_threshold(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    return float(threshold)


def _above(instances: Instances, threshold: float) -> Instances:
    return instances[instances.scores >= threshold]


def _is_several(images: Any) -> bool:
    if not isinstance(images, str | Path):
        return False
    path = Path(os.path.expanduser(images))
    return not path.is_file() or path.suffix.lower() in VIDEO_SUFFIXES


def _images(images: Any) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield (source, image) of every image."""
    for number, entry in enumerate(images if isinstance(images, list | tuple) else [images]):
        if isinstance(entry, str | Path):
            yield from _from_path(str(entry))
        else:
            yield f"image {number}", _as_rgb(entry, number)


def _from_path(entry: str) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    if "://" in entry:
        raise ValueError(f"{entry}: URLs are not downloaded; save the image and give its path")
    if entry.lower().endswith(VIDEO_SUFFIXES):
        yield from _frames(Path(os.path.expanduser(entry)))
        return
    for path in find_images([entry]):
        yield str(path), read_rgb(path)


def _frames(path: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the frames of a video file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}")
    try:
        for number, (frame_HWC, _) in enumerate(read_frames(str(path))):
            yield f"{path} frame {number}", frame_HWC
    except CutOffVideoError as error:
        logger.warning("%s", error)


def _as_rgb(image: Any, number: int) -> NDArray[np.uint8]:
    """Return an image in memory as uint8 RGB [H, W, 3]."""
    if isinstance(image, Image.Image):
        return _from_pil(image, number)
    if isinstance(image, torch.Tensor):
        return _from_tensor(image, number)
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"image {number} is a {type(image).__name__}: give a path, a PIL image, an array "
            "[H, W, 3] or a tensor [3, H, W]"
        )
    array = image[..., None].repeat(3, axis=-1) if image.ndim == 2 else image
    check_rgb(array, f"image {number}")
    return np.ascontiguousarray(array)


def _from_pil(image: Image.Image, number: int) -> NDArray[np.uint8]:
    """Convert a PIL image as a file of it would be: 16 bits keep their range."""
    try:
        upright = ImageOps.exif_transpose(image)
        values = np.asarray(upright)
        if (values.dtype.kind, values.dtype.itemsize) == ("u", 2):
            scaled = (values.astype(np.uint32) * 255 + 32767) // 65535
            upright = Image.fromarray(scaled.astype(np.uint8))
        elif values.dtype not in (np.uint8, np.bool_):
            raise ValueError(f"the range of its {values.dtype} pixels is unknown")
        array = np.asarray(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow reads files when asked for pixels
        raise ValueError(
            f"image {number} is a PIL image of mode {image.mode} that cannot be used: {error}; "
            "convert it to RGB"
        ) from error
    check_rgb(array, f"image {number}")
    return array


def _from_tensor(image: torch.Tensor, number: int) -> NDArray[np.uint8]:
    floating = image.is_floating_point()
    is_known = floating or image.dtype == torch.uint8
    if image.dim() != 3 or image.shape[0] != 3 or not is_known or not image.numel():
        raise ValueError(
            f"image {number} is a tensor {list(image.shape)} of {image.dtype}: it must be "
            "[3, H, W] (RGB), uint8 or floating point in [0, 1]"
        )
    image = image.detach()
    if floating:
        low, high = float(image.min()), float(image.max())
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"image {number} has values from {low:.3g} to {high:.3g}: floating-point images "
                "must lie in [0, 1]"
            )
        image = (image * 255).round().to(torch.uint8)
    array: NDArray[np.uint8] = image.permute(1, 2, 0).cpu().contiguous().numpy()
    return array
