"""Convert a data set record to the input of a detection transformer."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

__all__ = ["DetrDatasetMapper"]


class DetrDatasetMapper:
    """Read and augment an image and its annotations.

    Args:
        augmentation: augmentations applied in order.
        augmentation_with_crop: if given, used for half of the images (at random) instead.
        is_train: keep annotations.
        mask_on: keep segmentation masks beside the boxes.
        img_format: channel order of the image, e.g. "RGB" or "BGR".
    """

    def __init__(
        self,
        augmentation: Sequence[Any],
        augmentation_with_crop: Sequence[Any] | None,
        is_train: bool = True,
        mask_on: bool = False,
        img_format: str = "RGB",
    ) -> None:
        self.augmentation = augmentation
        self.augmentation_with_crop = augmentation_with_crop
        self.is_train = is_train
        self.mask_on = mask_on
        self.img_format = img_format
        logging.getLogger(__name__).info(
            "Augmentations: %s; with a crop: %s",
            augmentation,
            augmentation_with_crop,
        )

    def _instances(
        self, annotations: list[dict[str, Any]], transforms: Any, image_size: tuple[int, int]
    ) -> Any:
        """Return transformed boxes (and masks) of all annotations but crowds and empty ones."""
        kept = []
        for annotation in annotations:
            if annotation.get("iscrowd", 0) != 0:
                continue
            annotation.pop("keypoints", None)
            if not self.mask_on:
                annotation.pop("segmentation", None)
            kept.append(utils.transform_instance_annotations(annotation, transforms, image_size))
        return utils.filter_empty_instances(utils.annotations_to_instances(kept, image_size))

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Load one record.

        Args:
            dataset_dict: detectron2's standard record: "file_name", "height", "width",
                "annotations" and more; left unchanged.

        Returns:
            A copy with "image", uint8 [C, H, W], and in training "instances" in place of
            "annotations".
        """
        record = copy.deepcopy(dataset_dict)
        image = utils.read_image(record["file_name"], format=self.img_format)
        utils.check_image_size(record, image)

        augmentation = self.augmentation
        if self.augmentation_with_crop is not None and np.random.rand() <= 0.5:
            augmentation = self.augmentation_with_crop
        image, transforms = T.apply_transform_gens(augmentation, image)
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))

        annotations = record.pop("annotations", None)
        if self.is_train and annotations is not None:
            record["instances"] = self._instances(annotations, transforms, image.shape[:2])
        return record
