"""Match results with the ground truth by hotcoco: AP, curves and outcomes of boxes and images.

``error_analysis`` makes an analysis of it; no other module depends on hotcoco's analyses.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendetr.compat.cached_property import cached_property
from tokendetr.evaluation.numbering import Numbering
from tokendetr.io.optional_hotcoco import load_hotcoco

__all__ = ["MatchedResults"]

PURPOSE = "the analysis of results"
SIZES = ("all", "small", "medium", "large")


class MatchedResults:
    """Results matched with the ground truth by hotcoco.

    Args:
        data: the annotations, as a COCO JSON holds them.
        rows: the results, with ``image_id``, ``category_id``, ``bbox`` (x, y, w, h in pixels) and
            ``score``.

    Raises:
        ConfigError: hotcoco is not installed.
    """

    def __init__(self, data: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        hotcoco = load_hotcoco(PURPOSE)
        self.data = data
        self.categories = sorted(data["categories"], key=lambda category: category["id"])
        # hotcoco reads neither text ids nor negative ones.
        numbering = Numbering(data)
        numbered = numbering.of_truth(data)
        for category, given in zip(numbered["categories"], data["categories"], strict=True):
            category["name"] = given["name"]
        truth = hotcoco.COCO(numbered)
        results = truth.load_res(numbering.of_results(rows))
        self.coco_eval = hotcoco.COCOeval(truth, results, "bbox")
        self.coco_eval.evaluate()
        self.coco_eval.accumulate()
        self._image_numbers = numbering.images
        images, categories = (
            {number: each for each, number in numbers.items()}
            for numbers in (numbering.images, numbering.categories)
        )
        self.rows = [
            {
                **row,
                "image_id": images[row["image_id"]],
                "category_id": categories[row["category_id"]],
            }
            for row in self.coco_eval.coco_dt.dataset["annotations"]
        ]

    @cached_property
    def diagnostics(self) -> dict[str, Any]:
        """Outcomes of every box (``gt_status``, ``dt_status``) and image (``img_summary``).

        By number: boxes of the ground truth and images from 1, in the orders of the annotations and
        of sorted ids; detections by their ``id`` in :attr:`rows`.
        """
        return dict(self.coco_eval.image_diagnostics(iou_thr=0.5))

    def compare(self, other: "MatchedResults", resamples: int, confidence: float) -> dict[str, Any]:
        """Return hotcoco's comparison with other results, by a paired bootstrap over images."""
        found = load_hotcoco(PURPOSE).compare(
            self.coco_eval, other.coco_eval, n_bootstrap=resamples, confidence=confidence
        )
        return dict(found)

    @cached_property
    def boxes_by_class(self) -> Counter[Any]:
        """Boxes of each category id, without crowds."""
        return Counter(a["category_id"] for a in self.data["annotations"] if not a.get("iscrowd"))

    @cached_property
    def outcomes(self) -> dict[Any, list[tuple[float, bool]]]:
        """Class -> (score, is a true positive) of every detection that counts, best first."""
        status = self.diagnostics["dt_status"]
        found: dict[Any, list[tuple[float, bool]]] = defaultdict(list)
        for row in self.rows:
            if status.get(row["id"]) in ("tp", "fp"):
                found[row["category_id"]].append((row["score"], status[row["id"]] == "tp"))
        for each in found.values():
            each.sort(reverse=True)
        return found

    def curve(self, category_id: Any) -> dict[str, NDArray[np.float64]]:
        """Return precision, recall and F1 of a class at IoU 0.5 for every score threshold."""
        found = self.outcomes.get(category_id, [])
        boxes = self.boxes_by_class[category_id]
        score = np.array([each for each, _ in found])
        right = np.array([each for _, each in found], dtype=float)
        hits = right.cumsum()
        precision = hits / np.arange(1, len(hits) + 1)
        recall = hits / max(boxes, 1)
        f1 = 2 * hits / np.maximum(np.arange(1, len(hits) + 1) + boxes, 1)
        # A threshold admits all detections of equal score, so only the last of them is a point.
        last = np.append(score[1:] != score[:-1], True)[: len(score)]
        return {
            "score": score[last],
            "precision": precision[last],
            "recall": recall[last],
            "f1": f1[last],
        }

    def metrics(self) -> dict[str, float]:
        """Return AP and AR in percent, and F1, by the names of :class:`Analysis`."""
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        cells: list[tuple[int | None, int]] = [(None, 0), (0, 0), (5, 0)]
        cells += [(None, size) for size in (1, 2, 3)]
        values = {
            name: self._mean("precision", *cell) for name, cell in zip(names, cells, strict=True)
        }
        values["AR100"] = self._mean("recall", None, 0)
        values["F1"] = 100 * float(self.coco_eval.f_scores()["F1_50"])
        return values

    def _mean(
        self, quantity: str, iou: int | None, size: int, category: int | None = None
    ) -> float:
        """Return mean ``precision`` or ``recall`` in percent; -1 without boxes, as COCO does."""
        values = self.coco_eval.eval[quantity][..., size, -1]
        values = values if iou is None else values[iou : iou + 1]
        values = values if category is None else values[..., category]
        values = values[values > -1]
        return 100 * float(values.mean()) if values.size else -1.0

    def classes(self) -> Iterator[dict[str, Any]]:
        """Yield a row per class: its boxes, AP and AR in percent."""
        for index, category in enumerate(self.categories):
            yield {
                "id": category["id"],
                "name": category["name"],
                "boxes": self.boxes_by_class[category["id"]],
                "AP": self._mean("precision", None, 0, index),
                "AP50": self._mean("precision", 0, 0, index),
                "AP75": self._mean("precision", 5, 0, index),
                **{
                    f"AP{name[0]}": self._mean("precision", None, size, index)
                    for size, name in enumerate(SIZES)
                    if size
                },
                "AR100": self._mean("recall", None, 0, index),
            }

    def worst_images(self) -> Iterator[dict[str, Any]]:
        """Yield a row per image, by ascending F1."""
        summaries = self.diagnostics["img_summary"]
        nothing = {"tp": 0, "fp": 0, "fn": 0}
        rows = []
        for image in self.data["images"]:
            found = summaries.get(self._image_numbers[image["id"]], nothing)
            hits, wrong, missed = found["tp"], found["fp"], found["fn"]
            f1 = 2 * hits / (2 * hits + wrong + missed) if hits + wrong + missed else 1.0
            own = {key: image.get(key) for key in ("id", "file_name", "width", "height")}
            rows.append({**own, "found": hits, "wrong": wrong, "missed": missed, "f1": f1})
        yield from sorted(rows, key=lambda row: (row["f1"], -row["wrong"] - row["missed"]))

    def boxes(self, names: Mapping[Any, str]) -> dict[Any, dict[str, list[dict[str, Any]]]]:
        """Return ground truth and detections of every image, and which of them are right."""
        found: dict[Any, dict[str, list[dict[str, Any]]]] = {
            image["id"]: {"truth": [], "detections": []} for image in self.data["images"]
        }
        truth, detected = self.diagnostics["gt_status"], self.diagnostics["dt_status"]
        for number, annotation in enumerate(self.data["annotations"], start=1):
            if not annotation.get("iscrowd"):
                found[annotation["image_id"]]["truth"].append(
                    {
                        "bbox": annotation["bbox"],
                        "name": names[annotation["category_id"]],
                        "right": truth.get(number) == "matched",
                    }
                )
        for row in self.rows:
            found[row["image_id"]]["detections"].append(
                {
                    "bbox": row["bbox"],
                    "name": names[row["category_id"]],
                    "right": detected.get(row["id"]) == "tp",
                    "score": row["score"],
                }
            )
        return found
