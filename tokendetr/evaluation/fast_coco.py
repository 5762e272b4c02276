"""Evaluate COCO's box and mask metrics with the fastest implementation that is installed."""

import contextlib
import importlib.metadata
import io
import itertools
import json
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from tokendetr.data.coco_check import read_coco
from tokendetr.errors import DatasetError
from tokendetr.evaluation.numbering import Numbering
from tokendetr.io.annotation_checks import (
    check_classes,
    check_results,
    max_detections,
    require_evaluable,
)
from tokendetr.io.annotations import AnnotationError
from tokendetr.io.atomic import write_atomically
from tokendetr.io.temporary import temporary_folder

__all__ = ["FastCOCOEvaluator", "load_backend"]

logger = logging.getLogger(__name__)

_BACKENDS = ("hotcoco", "faster_coco_eval", "pycocotools")


@dataclass(frozen=True)
class _Backend:
    """An implementation with pycocotools' interface.

    Attributes:
        name: name of the module.
        coco: makes a data set from a dict.
        coco_eval: evaluates (ground truth, detections, task).
    """

    name: str
    coco: Callable[[dict[str, Any]], Any]
    coco_eval: Callable[[Any, Any, str], Any]


def load_backend(name: str = "auto") -> _Backend:
    """Import an implementation by name, or the fastest that is installed.

    Args:
        name: ``auto``, ``hotcoco``, ``faster_coco_eval`` or ``pycocotools``.

    Raises:
        ValueError: unknown name.
        ImportError: it is not installed; the message says how to install it.
    """
    if name not in ("auto", *_BACKENDS):
        raise ValueError(f"unknown backend {name!r}: use auto, {', '.join(_BACKENDS)}")
    for candidate in _BACKENDS if name == "auto" else (name,):
        try:
            return _import_backend(candidate)
        except ImportError as error:
            if name != "auto":
                package = candidate.replace("_", "-")
                raise ImportError(f"{candidate} is not installed: pip install {package}") from error
    raise ImportError("no COCO evaluation is installed: pip install pycocotools")


def _import_backend(name: str) -> _Backend:
    if name == "hotcoco":
        import hotcoco

        return _Backend(name, partial(_from_file, hotcoco.COCO), hotcoco.COCOeval)
    if name == "faster_coco_eval":
        import faster_coco_eval

        return _Backend(name, faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _Backend(name, partial(_from_dict, COCO), COCOeval)


def _from_dict(kind: Callable[[], Any], data: dict[str, Any]) -> Any:
    coco = kind()
    coco.dataset = data
    coco.createIndex()
    return coco


def _from_file(kind: Callable[[str], Any], data: dict[str, Any]) -> Any:
    """Make a data set with an implementation that only reads files."""
    with temporary_folder() as folder:
        file = folder / "annotations.json"
        file.write_text(json.dumps(data))
        return kind(str(file))


class FastCOCOEvaluator(DatasetEvaluator):
    """Drop-in replacement for detectron2's ``COCOEvaluator``: same arguments, keys, files, digits.

    Evaluates boxes, and masks if predictions have them.

    Args:
        dataset_name: a registered data set with a COCO ``json_file``.
        tasks: ``bbox``, ``segm`` or both; None to infer them from the predictions.
        distributed: collect the predictions of all ranks on rank 0.
        output_dir: folder for ``coco_instances_results.json`` and ``coco_evaluation.json`` (the
            results, and the implementation that computed them); None writes nothing.
        max_dets_per_image: number of predictions per image that count, by descending score, or the
            three numbers of pycocotools' ``maxDets``; None for 100.
        backend: ``auto``, ``hotcoco``, ``faster_coco_eval`` or ``pycocotools``.
        **unused: further arguments of ``COCOEvaluator``, which are ignored.

    Raises:
        ValueError: the data set has no ``json_file``, or task or backend are unknown.
        DatasetError: pycocotools would evaluate the annotations wrongly or fail.
        ImportError: the backend is not installed.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: str | Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | Sequence[int] | None = None,
        backend: str = "auto",
        **unused: Any,
    ) -> None:
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file", None)
        if json_file is None:
            raise ValueError(
                f"data set {dataset_name!r} has no COCO JSON (json_file in its metadata): use "
                "detectron2's COCOEvaluator, which converts it"
            )
        self._tasks = (tasks,) if isinstance(tasks, str) else tasks and tuple(tasks)
        if self._tasks and not set(self._tasks) <= {"bbox", "segm"}:
            raise ValueError(f"tasks {self._tasks}: FastCOCOEvaluator supports only bbox and segm")
        self._max_dets = max_detections(max_dets_per_image)
        self._distributed = distributed
        self._output_dir = output_dir
        self._backend = load_backend(backend)
        self._data = self._read(str(json_file))
        self._numbering = Numbering(self._data)
        with contextlib.redirect_stdout(io.StringIO()):
            self._ground_truth = self._backend.coco(self._numbering.of_truth(self._data))
        logger.info("COCO metrics of %s by %s", dataset_name, self.backend)
        self._predictions: list[dict[str, Any]] = []

    @property
    def backend(self) -> str:
        """Name and version of the implementation in use."""
        name = self._backend.name
        return f"{name} {importlib.metadata.version(name.replace('_', '-'))}"

    def _read(self, json_file: str) -> dict[str, Any]:
        data = read_coco(json_file)
        try:
            require_evaluable(data, f"'{json_file}'", self._tasks or ())
        except AnnotationError as error:
            raise DatasetError(str(error)) from error
        return data

    def reset(self) -> None:
        """Discard all predictions."""
        self._predictions = []

    def process(
        self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
    ) -> None:
        """Add the predictions for a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances``: ``pred_boxes`` (XYXY pixels), ``scores``,
                ``pred_classes`` and optionally ``pred_masks``.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                instances = output["instances"].to(torch.device("cpu"))
                rows = instances_to_coco_json(instances, record["image_id"])
                self._predictions.append({"image_id": record["image_id"], "instances": rows})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> "OrderedDict[str, Any]":
        """Compute the metrics of all predictions.

        Args:
            img_ids: evaluate only these images.

        Returns:
            On rank 0 task -> ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` and
            ``AP-<class>``, from 0 to 100 (NaN without ground truth); empty on other ranks.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions)))
            if not comm.is_main_process():
                return OrderedDict()
        if not predictions:
            logger.warning("No image was processed, so there is nothing to evaluate.")
            return OrderedDict()
        predictions = _once(predictions)
        rows = self._with_dataset_categories(
            list(itertools.chain(*(p["instances"] for p in predictions)))
        )
        self._save(rows)
        if "annotations" not in self._data:
            logger.info("The data set has no annotations: predictions are written, not evaluated.")
            return OrderedDict()
        has_masks = any("segmentation" in row for row in rows)
        tasks = self._tasks or (("bbox", "segm") if has_masks else ("bbox",))
        check_results(rows, self._numbering.images, tasks)
        rows = self._numbering.of_results(rows)
        if "segm" in tasks:
            require_evaluable(self._data, str(self._metadata.json_file), tasks)
        results = OrderedDict((task, self._evaluate_task(task, rows, img_ids)) for task in tasks)
        self._record(results)
        return results

    def _record(self, results: Mapping[str, Any]) -> None:
        """Write the results with the implementation that computed them."""
        if not self._output_dir:
            return
        record = {
            "data_set": self._metadata.name,
            "backend": self.backend,
            "max_dets": self._max_dets,
            "results": results,
        }
        write_atomically(
            os.path.join(self._output_dir, "coco_evaluation.json"),
            (json.dumps(record, indent=1) + "\n").encode(),
        )

    def _with_dataset_categories(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the records with the JSON's category ids instead of class indices."""
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id", None)
        if id_map is None:
            return rows
        original = {contiguous: category for category, contiguous in id_map.items()}
        check_classes(rows, len(original))
        return [{**row, "category_id": original[row["category_id"]]} for row in rows]

    def _save(self, rows: list[dict[str, Any]]) -> None:
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            logger.info("Saving results to %s", path)
            write_atomically(path, json.dumps(rows).encode())

    def _evaluate_task(
        self, task: str, rows: list[dict[str, Any]], img_ids: Sequence[int] | None
    ) -> dict[str, float]:
        names = self._metadata.get("thing_classes", None)
        metrics = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        if not rows:
            logger.warning("The model found nothing in any image: every metric is NaN.")
            return dict.fromkeys(metrics, float("nan"))
        known = self._numbering.images
        chosen = None if img_ids is None else [known[each] for each in img_ids if each in known]
        if chosen == []:  # for one implementation no images means all of them
            per_class = _class_keys(names) if names is not None and len(names) > 1 else []
            return dict.fromkeys((*metrics, *per_class), float("nan"))
        if task == "segm":
            # With a box in the record, its area would be used instead of the mask's.
            rows = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
        with contextlib.redirect_stdout(io.StringIO()):
            detections = self._ground_truth.loadRes(rows)
            evaluation = self._backend.coco_eval(self._ground_truth, detections, task)
            evaluation.params.maxDets = self._max_dets
            if chosen is not None:
                evaluation.params.imgIds = chosen
            evaluation.evaluate()
            evaluation.accumulate()
        results = _metrics(np.asarray(evaluation.eval["precision"]), evaluation.params)
        logger.info(
            "Evaluation results for %s by %s:\n%s",
            task,
            self._backend.name,
            tabulate([list(results.values())], headers=list(results), tablefmt="pipe"),
        )
        if names is not None and len(names) > 1:
            results.update(_per_category(np.asarray(evaluation.eval["precision"]), names))
        return results


def _once(predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first predictions for each image: a sampler may repeat images to fill batches."""
    first: dict[Any, dict[str, Any]] = {}
    for prediction in predictions:
        first.setdefault(prediction["image_id"], prediction)
    if repeated := len(predictions) - len(first):
        logger.warning("%d predictions repeat those of an image: the first ones count", repeated)
    return list(first.values())


def _mean(precision: np.ndarray) -> float:
    """Return the mean in percent over defined values; COCO marks the others by -1."""
    defined = precision[precision > -1]
    return float(np.mean(defined)) * 100 if defined.size else float("nan")


def _metrics(precision: np.ndarray, params: Any) -> dict[str, float]:
    """Return COCO's six precision metrics.

    Args:
        precision: [thresholds, recalls, categories, areas, numbers of detections].
        params: parameters of the evaluation.
    """
    thresholds = np.asarray(params.iouThrs)
    areas = [str(label) for label in params.areaRngLbl]
    whole = precision[:, :, :, areas.index("all"), -1]
    return {
        "AP": _mean(whole),
        "AP50": _mean(whole[np.isclose(thresholds, 0.5)]),
        "AP75": _mean(whole[np.isclose(thresholds, 0.75)]),
        "APs": _mean(precision[:, :, :, areas.index("small"), -1]),
        "APm": _mean(precision[:, :, :, areas.index("medium"), -1]),
        "APl": _mean(precision[:, :, :, areas.index("large"), -1]),
    }


def _class_keys(names: Sequence[str]) -> list[str]:
    """Return the name of each class's AP; classes of one name get their index."""
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [
        f"AP-{name} (class {k})" if name in twice else f"AP-{name}" for k, name in enumerate(names)
    ]


def _per_category(precision: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    return {key: _mean(precision[:, :, k, 0, -1]) for k, key in enumerate(_class_keys(names))}
