"""Renumber ground truth and predictions for implementations of COCO's evaluation."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Numbering"]


class Numbering:
    """Map image and category ids to 1, 2, ... in sorted order.

    Fast implementations support neither text ids nor very large numbers.

    Args:
        data: ground truth, normalized by :mod:`tokendetr.io.annotations`.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.images = _ranks(image["id"] for image in data["images"])
        self.categories = _ranks(category["id"] for category in data["categories"])

    def of_truth(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the ground truth with the new ids, reduced to the fields that evaluations read."""
        fields = ("bbox", "area", "iscrowd", "segmentation")
        annotations = []
        for number, given in enumerate(data.get("annotations", []), start=1):
            numbers = {
                "id": number,
                "image_id": self.images[given["image_id"]],
                "category_id": self.categories[given["category_id"]],
            }
            annotations.append({**{key: given[key] for key in fields if key in given}, **numbers})
        images = [
            {"id": self.images[image["id"]], "width": image["width"], "height": image["height"]}
            for image in data["images"]
        ]
        categories = [
            {"id": self.categories[category["id"]], "name": str(category["id"])}
            for category in data["categories"]
        ]
        return {
            "info": {},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }

    def of_results(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the predictions with the new ids.

        Raises:
            ValueError: the ground truth lacks the category of a prediction.
        """
        found = []
        for row in rows:
            if row["category_id"] not in self.categories:
                raise ValueError(
                    f"a prediction for image {row['image_id']} is of category "
                    f"{row['category_id']}, which the annotations do not have"
                )
            numbers = (self.images[row["image_id"]], self.categories[row["category_id"]])
            found.append({**row, "image_id": numbers[0], "category_id": numbers[1]})
        return found


def _ranks(ids: Iterable[Any]) -> dict[Any, int]:
    return {each: number for number, each in enumerate(sorted(ids), start=1)}
