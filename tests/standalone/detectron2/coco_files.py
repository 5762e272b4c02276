"""Small COCO-format data sets on disk for the tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def box_polygon(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotation(ann_id: int, image_id: int, category: int, box: list[float], **extra) -> dict:
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [box_polygon(*box)],
        **extra,
    }


def write_coco(
    root: Path,
    *,
    sizes: list[tuple[int, int]],
    annotations: list[dict],
    categories: tuple[tuple[int, str], ...] = ((3, "cat"), (7, "dog"), (9, "cow")),
    with_images: bool = True,
) -> tuple[str, str]:
    """Write images of the given (height, width) and their JSON; returns (json file, image root)."""
    rng = np.random.default_rng(0)
    image_root = root / "images"
    image_root.mkdir(parents=True, exist_ok=True)
    images = []
    for image_id, (height, width) in enumerate(sizes, start=1):
        name = f"{image_id:04d}.png"
        if with_images:
            pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image_root / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
    content: dict[str, Any] = {
        "info": {},
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": annotations,
    }
    json_file = root / "annotations.json"
    json_file.write_text(json.dumps(content))
    return str(json_file), str(image_root)


def random_coco(root: Path, *, num_images: int = 12, seed: int = 0, **kwargs) -> tuple[str, str]:
    """Make images of two shapes with random boxes of small, medium and large objects."""
    rng = np.random.default_rng(seed)
    sizes = [(120, 160) if rng.random() < 0.5 else (160, 120) for _ in range(num_images)]
    annotations = []
    for image_id, (height, width) in enumerate(sizes, start=1):
        for _ in range(int(rng.integers(1, 6))):
            side = rng.uniform(8, 110, 2)
            w, h = min(side[0], width - 1), min(side[1], height - 1)
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            box = [round(float(v), 2) for v in (x, y, w, h)]
            category = int(rng.choice([3, 7, 9]))
            annotations.append(annotation(len(annotations) + 1, image_id, category, box))
    return write_coco(root, sizes=sizes, annotations=annotations, **kwargs)
