"""Helpers of dataset mappers: reading images, transforming annotations, building targets."""
# Over 350 lines: upstream has all of this in one module, and users find it there.

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import transforms as T
from detectron2.data.catalog import MetadataCatalog
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    Instances,
    Keypoints,
    PolygonMasks,
    polygons_to_bitmask,
)
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "build_augmentation",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "create_keypoint_hflip_indices",
    "filter_empty_instances",
    "read_image",
    "transform_instance_annotations",
    "transform_keypoint_annotations",
]

# ITU-R BT.601 conversion between YUV and RGB; rows are output channels.
_RGB_FROM_YUV = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])
_YUV_FROM_RGB = np.array(
    [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
)


class SizeMismatchError(ValueError):
    """The size of an image differs from that in its record."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Turn a Pillow image into an array.

    Args:
        image: any mode.
        format: a Pillow mode, ``"BGR"``, ``"YUV-BT.601"``, or None to keep the image's mode.

    Returns:
        ``[H, W, C]``; ``"L"`` has one channel; YUV is float in the range of its matrix.
    """
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    array = np.asarray(image)
    if format == "L":
        return array[:, :, None]
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "YUV-BT.601":
        return (array / 255.0) @ _YUV_FROM_RGB.T
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Turn an image of a format that :func:`read_image` produces into uint8 RGB.

    Args:
        image: ``[H, W, C]``.
        format: as for :func:`read_image`.

    Returns:
        ``[H, W, 3]`` uint8.
    """
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if format == "BGR":
        return array[:, :, [2, 1, 0]]
    if format == "YUV-BT.601":
        rgb = array @ _RGB_FROM_YUV.T * 255.0
        return rgb.round().clip(0, 255).astype(np.uint8)
    if format == "L":
        return np.repeat(array.reshape(*array.shape[:2], 1).astype(np.uint8), 3, axis=2)
    pil = Image.fromarray(array.astype(np.uint8), mode=format) if format != "RGB" else None
    return np.asarray(pil.convert("RGB")) if pil is not None else array.astype(np.uint8)


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image and rotate it as its EXIF orientation says.

    Args:
        file_name: a path that PathManager can open.
        format: a Pillow mode such as ``"RGB"`` or ``"L"``, or ``"BGR"`` or ``"YUV-BT.601"``; None
            keeps the file's own mode.

    Returns:
        ``[H, W, C]``, uint8 in [0, 255] except for YUV (float); ``[H, W]`` for a gray file when
        ``format`` is None.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file is not an image or is damaged.
    """
    if os.path.exists(file_name) and not os.path.isfile(file_name):  # a pipe would never end
        raise OSError(f"Cannot read the image '{file_name}': it is a folder, a pipe or a device")
    with PathManager.open(file_name, "rb") as file:
        try:
            image = Image.open(file)
            image.load()
            return convert_PIL_to_numpy(_with_8_bits(_upright(image)), format)
        except MemoryError:
            raise
        except Exception as error:  # the file may be anything, and Pillow's readers raise anything
            raise OSError(f"Cannot read the image '{file_name}': {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Rotate an image as its EXIF orientation says, unless its EXIF data are damaged."""
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:
        return image


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit images to 8 bits; Pillow's own conversion clips at 255.

    Raises:
        ValueError: the range of its values is unknown: 32 bits, or floating point.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are of mode {image.mode}, whose range is not known: convert the file to "
            "8 or 16 bits"
        )
    return image


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare an image with its record's ``width`` and ``height``, and fill them in if absent.

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    expected = (dataset_dict.get("width", width), dataset_dict.get("height", height))
    if (width, height) != expected:
        where = f" for image {dataset_dict['file_name']}" if "file_name" in dataset_dict else ""
        raise SizeMismatchError(
            f"Mismatched image shape{where}: the file has {(width, height)} pixels, "
            f"its annotation says {expected}."
        )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: Any,
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> dict[str, Any]:
    """Apply transforms to the box, segmentation and keypoints of one annotation, in place.

    Args:
        annotation: has ``bbox`` and ``bbox_mode``; the box becomes XYXY_ABS, clipped to the image.
        transforms: one ``Transform`` or a list of them.
        image_size: (height, width) of the transformed image.
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`.

    Returns:
        The same dict. A segmentation of polygons stays polygons; an RLE becomes a bool mask.
    """
    if isinstance(transforms, (tuple, list)):
        transforms = T.TransformList(list(transforms))
    height, width = image_size
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    box = transforms.apply_box(np.asarray([box], dtype=np.float64))[0].clip(min=0)
    annotation["bbox"] = np.minimum(box, (width, height, width, height))
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(
            annotation["segmentation"], transforms, image_size
        )
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def _transform_segmentation(
    segmentation: Any, transforms: T.Transform, image_size: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    if isinstance(segmentation, list):
        points = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(points)]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        assert tuple(mask.shape[:2]) == tuple(image_size), (
            f"an RLE mask became {mask.shape[:2]} but the image {tuple(image_size)}: "
            "the mask's own size does not match the image's"
        )
        return mask
    raise ValueError(
        f"a segmentation is a list of polygons or a COCO RLE, not a {type(segmentation)}"
    )


def transform_keypoint_annotations(
    keypoints: Any,
    transforms: T.Transform,
    image_size: tuple[int, int],
    keypoint_hflip_indices: np.ndarray | None = None,
) -> np.ndarray:
    """Apply transforms to keypoints; those that leave the image become unlabeled.

    Args:
        keypoints: ``[3 * K]`` numbers (x, y, visibility).
        transforms: the transform.
        image_size: (height, width) of the transformed image.
        keypoint_hflip_indices: order of the keypoints after mirroring.

    Returns:
        ``[K, 3]`` float64; unlabeled keypoints (visibility 0) are all zero.
    """
    points = np.asarray(keypoints, dtype=np.float64).reshape(-1, 3)
    xy = transforms.apply_coords(points[:, :2].copy())
    upper = np.array(image_size[::-1])
    inside = ((xy >= 0) & (xy <= upper)).all(axis=1)
    points = np.concatenate([xy, points[:, 2:]], axis=1)
    points[:, 2][~inside] = 0
    flips = [
        isinstance(t, T.HFlipTransform) for t in getattr(transforms, "transforms", [transforms])
    ]
    if sum(flips) % 2 == 1:
        if keypoint_hflip_indices is None:
            raise ValueError(
                "Flipped keypoints need keypoint_hflip_indices, which left and right are."
            )
        if len(points) != len(keypoint_hflip_indices):
            raise ValueError(
                f"Keypoint data has {len(points)} points, but metadata contains "
                f"{len(keypoint_hflip_indices)} points!"
            )
        points = points[np.asarray(keypoint_hflip_indices, dtype=np.int64)]
    points[points[:, 2] == 0] = 0
    return points


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Build the training target of an image.

    Args:
        annos: annotations after :func:`transform_instance_annotations`.
        image_size: (height, width).
        mask_format: ``"polygon"`` or ``"bitmask"``.

    Returns:
        Instances with ``gt_boxes``, ``gt_classes`` and, if the annotations have them, ``gt_masks``
        and ``gt_keypoints``.
    """
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annos]
    target = Instances(image_size)
    target.gt_boxes = Boxes(np.stack(boxes) if boxes else np.zeros((0, 4)))
    target.gt_classes = torch.tensor([int(a["category_id"]) for a in annos], dtype=torch.int64)
    if any("segmentation" in a for a in annos):
        segmentations = _of_all(annos, "segmentation")
        if mask_format == "polygon":
            target.gt_masks = _polygon_masks(segmentations)
        else:
            assert mask_format == "bitmask", mask_format
            target.gt_masks = _bit_masks(segmentations, image_size)
    if any("keypoints" in a for a in annos):
        target.gt_keypoints = Keypoints(np.stack(_of_all(annos, "keypoints")))
    return target


def _of_all(annos: list[dict[str, Any]], key: str) -> list[Any]:
    """Return one field of all annotations.

    Raises:
        ValueError: some have it and some do not; names the first without.
    """
    for number, annotation in enumerate(annos, start=1):
        if key not in annotation:
            raise ValueError(
                f"annotation {number} of {len(annos)} in the image (class "
                f"{annotation['category_id']}, box {np.round(annotation['bbox'], 1).tolist()} in "
                f"the resized image) has no {key} that can be read, but others have: give it to "
                "all, or train on boxes alone"
            )
    return [annotation[key] for annotation in annos]


def _polygon_masks(segmentations: list[Any]) -> PolygonMasks:
    try:
        return PolygonMasks(segmentations)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "Failed to use mask_format=='polygon' from the given annotations: some segmentation "
            "is not a list of polygons. Use mask_format 'bitmask' for RLE masks."
        ) from error


def _bit_masks(segmentations: list[Any], image_size: tuple[int, int]) -> BitMasks:
    masks = []
    for segmentation in segmentations:
        if isinstance(segmentation, list):
            mask = polygons_to_bitmask(segmentation, *image_size)
        elif isinstance(segmentation, dict):
            mask = mask_util.decode(segmentation)
        elif isinstance(segmentation, np.ndarray):
            assert segmentation.ndim == 2, f"expect a 2-d mask, got {segmentation.ndim} axes"
            mask = segmentation
        else:
            raise ValueError(
                "a segmentation is a list of polygons, a COCO RLE or a mask [H, W], "
                f"not a {type(segmentation)}"
            )
        masks.append(torch.from_numpy(np.array(mask, dtype=bool)))
    return BitMasks(torch.stack(masks))


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Any:
    """Drop instances whose box or mask is empty.

    Args:
        instances: a training target.
        by_box: drop boxes with a side not longer than ``box_threshold``.
        by_mask: drop empty masks, if there are masks.
        box_threshold: in pixels.
        return_mask: also return the mask of kept rows.

    Returns:
        The kept instances, and with ``return_mask`` the bool vector of kept rows.
    """
    assert by_box or by_mask, "filter_empty_instances needs by_box or by_mask"
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def create_keypoint_hflip_indices(dataset_names: str | list[str]) -> list[int]:
    """Return the index of each keypoint's mirror twin, from the metadata of the data sets."""
    names = [dataset_names] if isinstance(dataset_names, str) else dataset_names
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    metadata = MetadataCatalog.get(names[0])
    partner: dict[str, str] = dict(metadata.keypoint_flip_map)
    partner.update({right: left for left, right in partner.items()})
    keypoints = list(metadata.keypoint_names)
    return [keypoints.index(partner.get(name, name)) for name in keypoints]


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Check that several data sets have the same value of a metadata attribute.

    Raises:
        ValueError: they differ.
    """
    if len(dataset_names) == 0:
        return
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values, strict=True):
        if value != values[0]:
            raise ValueError(
                f"Datasets '{dataset_names[0]}' and '{name}' have different metadata '{key}': "
                f"{values[0]} != {value}"
            )


def build_augmentation(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """Return the default augmentations of a yacs config: resize, and random flip in training."""
    if is_train:
        size, limit = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
        style = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    else:
        size, limit, style = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice"
    augmentations: list[T.Augmentation] = [T.ResizeShortestEdge(size, limit, style)]
    if is_train and cfg.INPUT.RANDOM_FLIP != "none":
        vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
        augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
    logging.getLogger(__name__).info("Augmentations: %s", augmentations)
    return augmentations
