"""Data sets, mappers, samplers and loaders under detectron2's names.

Importing this package registers the built-in data sets.
"""

from detectron2.data import datasets, samplers, transforms
from detectron2.data.build import (
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.common import (
    DatasetFromList,
    MapDataset,
    ToIterableDataset,
)
from detectron2.data.dataset_mapper import DatasetMapper

__all__ = [
    "DatasetCatalog",
    "DatasetFromList",
    "DatasetMapper",
    "MapDataset",
    "Metadata",
    "MetadataCatalog",
    "ToIterableDataset",
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "datasets",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
    "samplers",
    "transforms",
]
