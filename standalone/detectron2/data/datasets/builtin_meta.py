"""Class names and ids of COCO."""

from typing import Any

__all__ = ["COCO_CATEGORIES"]

# The 80 "thing" categories: ids run from 1 to 90 with these left out.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
_IDS = [i for i in range(1, 91) if i not in _UNUSED_IDS]
COCO_CATEGORIES = [
    {"id": i, "name": name, "isthing": 1} for i, name in zip(_IDS, _NAMES, strict=True)
]

_SIDED_KEYPOINTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def _coco_instances_meta() -> dict[str, Any]:
    """Return ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of COCO detection."""
    return {
        "thing_classes": list(_NAMES),
        "thing_dataset_id_to_contiguous_id": {k: i for i, k in enumerate(_IDS)},
    }


def _coco_person_keypoints_meta() -> dict[str, Any]:
    """Return the metadata of COCO keypoints: class, names, and pairs that mirroring swaps."""
    pairs = [(f"left_{part}", f"right_{part}") for part in _SIDED_KEYPOINTS]
    return {
        "thing_classes": ["person"],
        "keypoint_names": ("nose", *(name for pair in pairs for name in pair)),
        "keypoint_flip_map": tuple(pairs),
    }
