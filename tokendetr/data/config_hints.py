"""Advise on a config's image size, queries and schedule for its training data."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median, quantiles
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tokendetr.data.coco_check import read_coco
from tokendetr.data.validate import coco_files, dataset_names
from tokendetr.errors import DatasetError

__all__ = ["config_hints"]

SMALLEST_OBJECT_PX = 12.0
"""Side below which an object covers little more than one cell of the finest level, of stride 8."""

EPOCHS = (8, 300)
"""Range of epochs outside of which there is advice on the schedule."""


def config_hints(cfg: DictConfig) -> list[str]:
    """Return advice on image size, number of queries, batch size and schedule, a sentence each.

    Args:
        cfg: the whole config. There is no advice on data sets that are not in COCO's format.
    """
    name = next((name for name, for_test in dataset_names(cfg) if not for_test), None)
    try:
        files = None if name is None else coco_files(name)
        data = None if files is None else read_coco(files.json_file)
    except (DatasetError, FileNotFoundError):
        return []  # validation reports it
    if data is None or not data["images"] or not data.get("annotations"):
        return []
    return [*_size_hints(cfg, data), *_query_hints(cfg, data), *_schedule_hints(cfg, data)]


def _short_edges(cfg: DictConfig) -> tuple[Sequence[int], int] | None:
    """Return the shorter sides that the training mapper resizes to, and the longer side's limit."""
    steps = OmegaConf.select(cfg, "dataloader.train.mapper.augmentation", default=None) or []
    for step in steps:
        edges = step.get("short_edge_length", None) if isinstance(step, DictConfig) else None
        if edges is not None:
            edges = [edges] if isinstance(edges, int) else list(edges)
            return edges, int(step.get("max_size", 1333))
    return None


def _size_hints(cfg: DictConfig, data: dict[str, Any]) -> Iterator[str]:
    found = _short_edges(cfg)
    if found is None:
        return
    edges, bound = found
    images = {image["id"]: image for image in data["images"]}
    width = median(image["width"] for image in images.values())
    height = median(image["height"] for image in images.values())

    def scale(image: dict[str, Any], edge: float) -> float:
        short, long = sorted((image["width"], image["height"]))
        return min(edge / short, bound / long)

    boxes = [a for a in data["annotations"] if not a.get("iscrowd") and min(a["bbox"][2:]) > 0]
    edge = median(edges)
    sides = [
        (a["bbox"][2] * a["bbox"][3]) ** 0.5 * scale(images[a["image_id"]], edge) for a in boxes
    ]
    if len(sides) < 2:
        return
    small, typical = quantiles(sides, n=10)[0], median(sides)
    read = f"{width:.0f} x {height:.0f} pixels (median) are resized to a short side of {edge:.0f}"
    yield (
        f"Images of {read}: objects then have a side of {typical:.0f} pixels (median), a tenth of "
        f"them less than {small:.0f}"
    )
    if small < SMALLEST_OBJECT_PX:
        factor = SMALLEST_OBJECT_PX / small
        yield (
            f"A tenth of the objects are smaller than {small:.0f} pixels: consider images "
            f"{factor:.1f} times as large (short_edge_length {edge * factor:.0f}, max_size "
            f"{bound * factor:.0f} in dataloader.train and dataloader.test)"
        )


def _query_hints(cfg: DictConfig, data: dict[str, Any]) -> Iterator[str]:
    queries = OmegaConf.select(cfg, "model.num_queries", default=None)
    most = max(Counter(a["image_id"] for a in data["annotations"]).values())
    if isinstance(queries, int) and most > queries:
        yield (
            f"One image has {most} boxes, but the model only {queries} queries: it cannot find "
            f"them all; set model.num_queries={2 * most} or more"
        )


def _schedule_hints(cfg: DictConfig, data: dict[str, Any]) -> Iterator[str]:
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size", default=None)
    iterations = OmegaConf.select(cfg, "train.max_iter", default=None)
    if not isinstance(batch, int) or not isinstance(iterations, int):
        return
    number = len(data["images"])
    epochs = iterations * batch / number
    if batch > number:
        yield (
            f"A batch of {batch} is larger than the data set of {number} images: set "
            f"dataloader.train.total_batch_size={max(1, number // 4)}"
        )
    elif not EPOCHS[0] <= epochs <= EPOCHS[1]:
        wanted = min(max(epochs, EPOCHS[0]), EPOCHS[1])
        yield (
            f"train.max_iter={iterations} is {epochs:,.1f} epochs of {number} images; for "
            f"{wanted} epochs set train.max_iter={round(wanted * number / batch)}"
        )
