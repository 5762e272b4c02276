"""Select images by the share of their area that objects cover."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["below_object_ratio", "object_ratio"]


def object_ratio(boxes_xywh_px: Sequence[Sequence[float]], height: float, width: float) -> float:
    """Return the share of an image's area that its boxes cover, in [0, 1]; overlaps count once.

    Args:
        boxes_xywh_px: [G, 4]; the parts outside the image do not count.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    # The edges of all boxes divide the image into a grid of rectangles, each covered or not.
    if not len(boxes_xywh_px):
        return 0.0
    boxes_G4 = np.asarray(boxes_xywh_px, dtype=np.float64).reshape(-1, 4)
    spans = []
    for axis, size in ((0, width), (1, height)):
        first_G = boxes_G4[:, axis].clip(0, size)
        last_G = (boxes_G4[:, axis] + boxes_G4[:, axis + 2]).clip(0, size)
        edges = np.unique(np.concatenate([first_G, last_G]))
        covers = (edges[:-1] >= first_G[:, None]) & (edges[1:] <= last_G[:, None])
        spans.append((np.diff(edges), covers))
    (widths, in_x), (heights, in_y) = spans
    covered = (in_y[:, :, None] & in_x[:, None, :]).any(axis=0)
    return float((heights[:, None] * widths[None, :])[covered].sum() / (height * width))


def below_object_ratio(annotations: Mapping[str, Any], max_ratio: float) -> dict[str, Any]:
    """Return the COCO annotations of images whose objects cover less than a share of them.

    Args:
        annotations: COCO's dict with ``images`` and ``annotations``.
        max_ratio: images with this or a larger :func:`object_ratio` are left out, in (0, 1].

    Raises:
        ValueError: ``max_ratio`` is out of range.

    Source: SPT, arXiv 2410.23608, section 4.1 (BDD-S: below 25 %).
    """
    if not 0 < max_ratio <= 1:
        raise ValueError(f"max_ratio must lie in (0, 1], got {max_ratio}")
    objects: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in annotations["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    images = [
        image
        for image in annotations["images"]
        if object_ratio(
            [annotation["bbox"] for annotation in objects[image["id"]]],
            image["height"],
            image["width"],
        )
        < max_ratio
    ]
    kept = {image["id"] for image in images}
    return {
        **annotations,
        "images": images,
        "annotations": [a for a in annotations["annotations"] if a["image_id"] in kept],
    }
