"""Data for detection transformers."""

from detrex.data.detr_dataset_mapper import DetrDatasetMapper

__all__ = ["DetrDatasetMapper"]
