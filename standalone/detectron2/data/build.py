"""Build loaders: from names of data sets to batches of mapped records."""
# Over 350 lines: upstream has all of this in one module, and users find it there.

import itertools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    MapDataset,
    ToIterableDataset,
)
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n
from tabulate import tabulate
from termcolor import colored

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Collator = Callable[[list[Any]], Any]


def filter_images_with_only_crowd_annotations(dataset_dicts: list[Record]) -> list[Record]:
    """Keep the records with at least one annotation that is not a crowd region."""
    kept = [
        record
        for record in dataset_dicts
        if any(annotation.get("iscrowd", 0) == 0 for annotation in record["annotations"])
    ]
    logger.info(
        "Left out %d images without usable annotations, kept %d",
        len(dataset_dicts) - len(kept),
        len(kept),
    )
    return kept


def filter_images_with_few_keypoints(
    dataset_dicts: list[Record], min_keypoints_per_image: int
) -> list[Record]:
    """Keep the records with at least this many labeled keypoints."""

    def labeled(record: Record) -> int:
        return sum(
            int((np.array(annotation["keypoints"][2::3]) > 0).sum())
            for annotation in record["annotations"]
            if "keypoints" in annotation
        )

    kept = [record for record in dataset_dicts if labeled(record) >= min_keypoints_per_image]
    logger.info(
        "Removed %d images with fewer than %d keypoints.",
        len(dataset_dicts) - len(kept),
        min_keypoints_per_image,
    )
    return kept


def print_instances_class_histogram(
    dataset_dicts: list[Record], class_names: Sequence[str]
) -> None:
    """Log a table of the number of instances of each class (crowd regions not counted).

    Raises:
        AssertionError: an annotation's ``category_id`` is outside ``[0, len(class_names))``.
    """
    num_classes = len(class_names)
    histogram = np.zeros(num_classes, dtype=np.int64)
    for record in dataset_dicts:
        classes = np.asarray(
            [a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)],
            dtype=np.int64,
        )
        if len(classes):
            assert classes.min() >= 0, f"category_id {classes.min()} is negative"
            assert classes.max() < num_classes, (
                f"category_id {classes.max()} is too large for {num_classes} classes "
                f"(image {record.get('file_name', record.get('image_id'))})"
            )
        histogram += np.bincount(classes, minlength=num_classes)

    def short(name: str) -> str:
        return name if len(name) <= 13 else name[:11] + ".."

    columns = min(6, num_classes * 2)
    cells: list[Any] = list(
        itertools.chain(*[[short(name), int(n)] for name, n in zip(class_names, histogram)])  # noqa: B905
    )
    if num_classes > 1:
        cells.extend(["total", int(histogram.sum())])
    cells.extend([None] * (-len(cells) % max(columns, 1)))
    table = tabulate(
        [cells[i : i + columns] for i in range(0, len(cells), max(columns, 1))],
        headers=["category", "#instances"] * (columns // 2),
        tablefmt="pipe",
        numalign="left",
        stralign="center",
    )
    log_first_n(
        logging.INFO,
        f"Instances of the {num_classes} categories:\n" + colored(table, "cyan"),
        key="message",
    )


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: list[str] | None = None,
    check_consistency: bool = True,
) -> list[Record]:
    """Load one or several registered data sets for detection.

    Args:
        names: a name or several; their records are joined in order.
        filter_empty: drop images without annotations (crowd regions do not count).
        min_keypoints: drop images with fewer labeled keypoints, if positive.
        proposal_files: must be None: precomputed proposals are not supported.
        check_consistency: check that all data sets have the same ``thing_classes``, and log how
            many instances each class has.

    Returns:
        The records.

    Raises:
        AssertionError: no name given, or a data set without any record.
        KeyError: an unknown name.
        ValueError: precomputed proposals, or class names that differ.
    """
    names = [names] if isinstance(names, str) else list(names)
    assert names, "get_detection_dataset_dicts needs at least one dataset name"
    if proposal_files is not None:
        raise ValueError(
            "proposal_files: precomputed proposals are not part of this subset of detectron2"
        )
    per_dataset = [DatasetCatalog.get(name) for name in names]
    if isinstance(per_dataset[0], torchdata.Dataset):
        if len(per_dataset) > 1:
            joined: Any = torchdata.ConcatDataset(per_dataset)
            return joined
        return per_dataset[0]
    for name, records in zip(names, per_dataset, strict=True):
        assert len(records), f"Dataset '{name}' is empty!"
    dataset_dicts = list(itertools.chain.from_iterable(per_dataset))

    has_instances = "annotations" in dataset_dicts[0]
    if filter_empty and has_instances:
        dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
    if min_keypoints > 0 and has_instances:
        dataset_dicts = filter_images_with_few_keypoints(dataset_dicts, min_keypoints)
    if check_consistency and has_instances:
        _report_classes(names, dataset_dicts)
    assert dataset_dicts, f"No valid data found in {','.join(names)}."
    return dataset_dicts


def _report_classes(names: list[str], dataset_dicts: list[Record]) -> None:
    """Check and log classes if the data sets name them (class-agnostic ones do not)."""
    try:
        class_names = MetadataCatalog.get(names[0]).thing_classes
        check_metadata_consistency("thing_classes", names)
    except AttributeError:
        return
    print_instances_class_histogram(dataset_dicts, class_names)


def build_batch_data_loader(
    dataset: Any,
    sampler: torchdata.Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = None,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """Build a loader of training batches.

    Args:
        dataset: mapped items: map-style with a sampler, or iterable without one.
        sampler: yields the indices of this rank.
        total_batch_size: images per step over all ranks; a multiple of their number.
        aspect_ratio_grouping: batches hold only landscape or only portrait images.
        num_workers: loader processes.
        collate_fn: makes a batch of a list; the list itself when None.
        drop_last: drop the last incomplete batch (without grouping).
        single_gpu_batch_size: images per step and rank, instead of ``total_batch_size``.
        prefetch_factor, persistent_workers, pin_memory: as in ``torch.utils.data.DataLoader``.
        seed: seed of the worker processes' generators; random when None.
        **kwargs: further arguments of the ``DataLoader``.

    Returns:
        An iterable of batches of ``total_batch_size / number of ranks`` items.

    Raises:
        AssertionError: the batch size is not a positive multiple of the number of ranks.
    """
    world_size = get_world_size()
    if single_gpu_batch_size:
        total_batch_size = single_gpu_batch_size * world_size
    assert total_batch_size > 0 and total_batch_size % world_size == 0, (
        f"a batch of {total_batch_size} cannot be split evenly among {world_size} processes"
    )
    batch_size = total_batch_size // world_size
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "an IterableDataset takes no sampler"
    else:
        assert sampler is not None, "a map-style dataset needs a sampler"
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    options: dict[str, Any] = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        **kwargs,
    }
    if seed is not None:
        options["generator"] = torch.Generator().manual_seed(seed)
    if not aspect_ratio_grouping:
        return torchdata.DataLoader(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            collate_fn=collate_fn or trivial_batch_collator,
            **options,
        )
    assert drop_last, "batches of one orientation need drop_last=True"
    items = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **options)
    batches = AspectRatioGroupedDataset(items, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[Record], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
    **kwargs: Any,
) -> Any:
    """Build a loader for training, which is endless if its sampler is.

    Args:
        dataset: a list of records, a map-style data set or an iterable one.
        mapper: turns a record into a model's input; None leaves records alone.
        sampler: yields indices; a :class:`TrainingSampler` when None. Must be None for an iterable
            data set.
        total_batch_size: images per step over all ranks.
        aspect_ratio_grouping: batches hold only landscape or only portrait images; needs ``width``
            and ``height`` in every item.
        num_workers: loader processes.
        collate_fn: makes a batch of a list; the list itself when None.
        **kwargs: see :func:`build_batch_data_loader`.

    Returns:
        An iterable of batches.
    """
    dataset, sampler = _with_sampler(dataset, mapper, sampler, TrainingSampler)
    assert sampler is None or isinstance(sampler, torchdata.Sampler), (
        f"{type(sampler)} is not a Sampler"
    )
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Callable[[Record], Any],
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
) -> torchdata.DataLoader:
    """Build a loader for evaluation: every record once over all ranks, in order.

    Args:
        dataset: a list of records or a data set.
        mapper: turns a record into a model's input; None leaves records alone.
        sampler: yields indices; an :class:`InferenceSampler` when None.
        batch_size: images per batch and rank.
        num_workers: loader processes.
        collate_fn: makes a batch of a list; the list itself when None.
    """
    dataset, sampler = _with_sampler(dataset, mapper, sampler, InferenceSampler)
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def _with_sampler(
    dataset: Any,
    mapper: Callable[[Record], Any] | None,
    sampler: torchdata.Sampler | None,
    default: Callable[[int], torchdata.Sampler],
) -> tuple[Any, torchdata.Sampler | None]:
    """Return a mapped data set and its sampler, which an iterable data set does not have."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        assert sampler is None, "an IterableDataset takes no sampler"
        return dataset, None
    return dataset, default(len(dataset)) if sampler is None else sampler


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Return the batch unchanged, as a list."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed numpy, random and torch of a loader process, differently in each."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
