"""COCO metrics with pycocotools."""
# Over 350 lines: upstream has all of this in one module, and users find it there.

import contextlib
import copy
import io
import itertools
import json
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data.catalog import MetadataCatalog
from detectron2.data.datasets._annotation_checks import (
    check_classes,
    check_results,
    max_detections,
    require_evaluable,
)
from detectron2.data.datasets.coco import convert_to_coco_json, read_coco_api
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

__all__ = ["COCOEvaluator", "COCOevalMaxDets", "instances_to_coco_json"]

_METRICS = {
    "bbox": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "segm": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "keypoints": ["AP", "AP50", "AP75", "APm", "APl"],
}


def _save_predictions(predictions: Any, path: str) -> None:
    """Write predictions; on a full disk nothing is left, and the error names the file."""
    content = io.BytesIO()  # torch.save itself fails on a full disk without naming it
    torch.save(predictions, content)
    try:
        with PathManager.open(path, "wb") as file:
            file.write(content.getbuffer())
    except OSError as error:
        with contextlib.suppress(OSError):
            PathManager.rm(path)
        raise OSError(error.errno, error.strerror, path) from error


class COCOEvaluator(DatasetEvaluator):
    """COCO's box, mask and keypoint AP, for any data set that converts to a COCO JSON.

    Args:
        dataset_name: a registered data set. With ``json_file`` in its metadata that file is the
            ground truth; otherwise the data set is converted to one in ``output_dir``.
        tasks: which of ``bbox``, ``segm``, ``keypoints``; found from the predictions when None.
        distributed: collect the predictions of all ranks on rank 0; otherwise each rank evaluates
            its own.
        output_dir: folder for ``instances_predictions.pth`` (predictions as collected) and
            ``coco_instances_results.json`` (in COCO's result format).
        max_dets_per_image: best-scored predictions per image that count: one number, or the three
            numbers of pycocotools' ``maxDets``; (1, 10, 100) when None.
        use_fast_impl: accepted for compatibility; results are pycocotools' either way.
        kpt_oks_sigmas: per-keypoint sigmas for other keypoints than COCO's 17.
        allow_cached_coco: reuse an earlier conversion in ``output_dir``.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Any = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | Sequence[int] | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        self._logger = logging.getLogger(__name__)
        self._distributed = distributed
        self._output_dir = output_dir
        self._use_fast_impl = use_fast_impl
        self._max_dets_per_image = max_detections(max_dets_per_image)
        if tasks is not None and hasattr(tasks, "TEST"):
            kpt_oks_sigmas = kpt_oks_sigmas or tasks.TEST.KEYPOINT_OKS_SIGMAS
            tasks = None
        self._tasks: tuple[str, ...] | None = (
            (tasks,) if isinstance(tasks, str) else None if tasks is None else tuple(tasks)
        )
        self._kpt_oks_sigmas = kpt_oks_sigmas
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._predictions: list[dict[str, Any]] = []
        self._results: dict[str, Any] = OrderedDict()
        self._coco_api = self._load_ground_truth(dataset_name, allow_cached_coco)
        # Test splits have images but no annotations: predictions are written and not evaluated.
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def _load_ground_truth(self, dataset_name: str, allow_cached: bool) -> COCO:
        json_file = self._metadata.get("json_file")
        if json_file is None:
            if self._output_dir is None:
                raise ValueError(
                    f"'{dataset_name}' has no 'json_file' in its metadata: COCOEvaluator needs an "
                    "output_dir, to write one there."
                )
            self._logger.info("Writing '%s' in COCO's format", dataset_name)
            json_file = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, json_file, allow_cached=allow_cached)
            self._metadata.json_file = json_file
        coco = read_coco_api(json_file)
        require_evaluable(coco.dataset, f"'{json_file}'", self._tasks or ())
        return coco

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: Iterable[dict[str, Any]], outputs: Iterable[dict[str, Any]]) -> None:
        """Collect the predictions of a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances``: ``pred_boxes``, ``scores``, ``pred_classes`` and
                optionally ``pred_masks``, ``pred_keypoints``.
        """
        for record, output in zip(inputs, outputs, strict=True):
            prediction: dict[str, Any] = {"image_id": record["image_id"]}
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                prediction["instances"] = instances_to_coco_json(instances, record["image_id"])
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Compute the metrics.

        Args:
            img_ids: evaluate on these images only.

        Returns:
            task -> metric -> number from 0 to 100 (NaN if it cannot be measured), with
            ``AP-<class>`` for each class; empty without predictions and on ranks other than 0.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(predictions, dst=0)
            predictions = list(itertools.chain(*gathered))
            if not comm.is_main_process():
                return {}
        if len(predictions) == 0:
            self._logger.warning("No image was processed, so there is nothing to evaluate.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            file_path = os.path.join(self._output_dir, "instances_predictions.pth")
            _save_predictions(predictions, file_path)
        self._results = OrderedDict()
        if "instances" in predictions[0]:
            self._eval_predictions(predictions, img_ids=img_ids)
        # A copy, so that the caller may change it.
        return copy.deepcopy(self._results)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        """Return the tasks that COCO-format predictions allow."""
        keys = {key for prediction in predictions for key in prediction}
        tasks = ["bbox"]
        if "segmentation" in keys:
            tasks.append("segm")
        if "keypoints" in keys:
            tasks.append("keypoints")
        return tasks

    def _to_dataset_categories(self, coco_results: list[dict[str, Any]]) -> None:
        """Replace contiguous category ids by those of the JSON, in place."""
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if id_map is None:
            return
        num_classes = len(id_map)
        assert min(id_map.values()) == 0 and max(id_map.values()) == num_classes - 1, id_map
        original_id = {contiguous: original for original, contiguous in id_map.items()}
        check_classes(coco_results, num_classes)
        for result in coco_results:
            result["category_id"] = original_id[result["category_id"]]

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None
    ) -> None:
        """Evaluate collected predictions and fill ``self._results``."""
        self._logger.info("Bringing the predictions into COCO's format")
        # Copies, so that another call sees the predictions as they were collected.
        coco_results = [dict(result) for p in predictions for result in p["instances"]]
        tasks = self._tasks or self._tasks_from_predictions(coco_results)
        self._to_dataset_categories(coco_results)
        if self._output_dir:
            file_path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info("Saving results to %s", file_path)
            with PathManager.open(file_path, "w") as file:
                file.write(json.dumps(coco_results))
        if not self._do_evaluation:
            self._logger.info(
                "The data set has no annotations: predictions are written, not evaluated."
            )
            return
        check_results(coco_results, self._coco_api.imgs, tasks)
        self._logger.info("Evaluating predictions with official COCO API...")
        for task in sorted(tasks):
            assert task in _METRICS, f"Got unknown task: {task}!"
            require_evaluable(self._coco_api.dataset, self._metadata.json_file, (task,))
            coco_eval = None
            if coco_results:
                coco_eval = _evaluate_predictions_on_coco(
                    self._coco_api,
                    coco_results,
                    task,
                    kpt_oks_sigmas=self._kpt_oks_sigmas,
                    img_ids=img_ids,
                    max_dets_per_image=self._max_dets_per_image,
                )
            self._results[task] = self._derive_coco_results(
                coco_eval, task, class_names=self._metadata.get("thing_classes")
            )

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Turn an accumulated ``COCOeval`` into named numbers, and log them.

        Args:
            coco_eval: after ``summarize()``; None means that there were no predictions.
            iou_type: the task.
            class_names: in the order of category ids, for the table of APs.
        """
        names = _METRICS[iou_type]
        if coco_eval is None:
            self._logger.warning("The model found nothing in any image: every metric is NaN.")
            return dict.fromkeys(names, float("nan"))
        results = {
            name: float(coco_eval.stats[i] * 100 if coco_eval.stats[i] >= 0 else "nan")
            for i, name in enumerate(names)
        }
        self._logger.info("Evaluation results for %s: \n%s", iou_type, create_small_table(results))
        if not np.isfinite(sum(results.values())):
            self._logger.info("Metrics without any ground truth are NaN.")
        if class_names is None or len(class_names) <= 1:
            return results
        per_category = _per_category_ap(coco_eval, class_names)
        self._logger.info("Per-category %s AP: \n%s", iou_type, _category_table(per_category))
        results.update({f"AP-{name}": ap for name, ap in per_category})
        return results


def _per_category_ap(coco_eval: Any, class_names: Sequence[str]) -> list[tuple[str, float]]:
    """Compute AP by class over all IoU thresholds and areas, with the most detections allowed."""
    # [thresholds, recalls, classes, areas, max dets]; -1 where a class has no ground truth.
    precisions = coco_eval.eval["precision"]
    assert len(class_names) == precisions.shape[2], (
        f"{len(class_names)} class names for {precisions.shape[2]} evaluated categories"
    )
    result = []
    twice = {name for name, count in Counter(class_names).items() if count > 1}
    for index, name in enumerate(class_names):
        if name in twice:
            name = f"{name} (class {index})"
        precision = precisions[:, :, index, 0, -1]
        precision = precision[precision > -1]
        ap = float(np.mean(precision)) if precision.size else float("nan")
        result.append((str(name), ap * 100))
    return result


def _category_table(per_category: list[tuple[str, float]], max_columns: int = 6) -> str:
    """Format the APs as a table of several category / AP column pairs."""
    columns = min(max_columns, len(per_category) * 2)
    cells: list[Any] = list(itertools.chain(*per_category))
    cells.extend([None] * (-len(cells) % columns))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return tabulate(
        rows,
        tablefmt="pipe",
        floatfmt=".3f",
        headers=["category", "AP"] * (columns // 2),
        numalign="left",
    )


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict[str, Any]]:
    """Turn predictions of an image into COCO's result format.

    Args:
        instances: on CPU, with ``pred_boxes``, ``scores``, ``pred_classes`` and optionally
            ``pred_masks`` (bool ``[N, H, W]``) and ``pred_keypoints`` (``[N, K, 3]``).
        img_id: the image's id.

    Returns:
        One dict per prediction; boxes are XYWH, category ids are as predicted.
    """
    if len(instances) == 0:
        return []
    boxes = instances.pred_boxes
    boxes = boxes.tensor if isinstance(boxes, Boxes) else boxes
    boxes_xywh = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    results = [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(classes, boxes_xywh, scores, strict=True)
    ]
    if instances.has("pred_masks"):
        for result, mask in zip(results, instances.pred_masks, strict=True):
            rle = mask_util.encode(np.asarray(mask, dtype=np.uint8, order="F"))
            # JSON holds text, not bytes.
            rle["counts"] = rle["counts"].decode("utf-8")
            result["segmentation"] = rle
    if instances.has("pred_keypoints"):
        for result, keypoints in zip(results, instances.pred_keypoints, strict=True):
            # COCO's keypoints are pixel indices, ours continuous coordinates.
            shifted = keypoints.clone()
            shifted[:, :2] -= 0.5
            result["keypoints"] = shifted.flatten().tolist()
    return results


def _evaluate_predictions_on_coco(
    coco_gt: COCO,
    coco_results: list[dict[str, Any]],
    iou_type: str,
    kpt_oks_sigmas: Sequence[float] | None = None,
    cocoeval_fn: Any = COCOeval,
    img_ids: Sequence[int] | None = None,
    max_dets_per_image: Sequence[int] | None = None,
) -> Any:
    """Run an evaluation class with pycocotools' interface and log its summary.

    Args:
        coco_gt: the ground truth.
        coco_results: at least one result in COCO's format.
        iou_type: ``bbox``, ``segm`` or ``keypoints``.
        kpt_oks_sigmas: other sigmas than COCO's.
        cocoeval_fn: the evaluation class.
        img_ids: evaluate on these images only.
        max_dets_per_image: ``maxDets``; (1, 10, 100) when None.

    Returns:
        The evaluation object after ``summarize()``.
    """
    assert len(coco_results) > 0
    logger = logging.getLogger(__name__)
    if iou_type == "segm":
        # With a box in the result, pycocotools would take areas from it and not from the mask.
        coco_results = [{k: v for k, v in r.items() if k != "bbox"} for r in coco_results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco_dt = coco_gt.loadRes(coco_results)
    max_dets = [1, 10, 100] if max_dets_per_image is None else list(max_dets_per_image)
    assert len(max_dets) >= 3, f"max_dets_per_image has 3 numbers, not {max_dets}"
    if max_dets[2] != 100 and iou_type != "keypoints" and cocoeval_fn is COCOeval:
        cocoeval_fn = COCOevalMaxDets
    coco_eval = cocoeval_fn(coco_gt, coco_dt, iou_type)
    if iou_type != "keypoints":
        coco_eval.params.maxDets = max_dets
    if img_ids is not None:
        coco_eval.params.imgIds = list(img_ids)
    if iou_type == "keypoints":
        _set_keypoint_sigmas(coco_eval, coco_results, kpt_oks_sigmas)
    summary = io.StringIO()
    with contextlib.redirect_stdout(summary):
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    logger.info("COCO %s:\n%s", iou_type, summary.getvalue().rstrip())
    return coco_eval


def _set_keypoint_sigmas(
    coco_eval: Any, coco_results: list[dict[str, Any]], sigmas: Sequence[float] | None
) -> None:
    if sigmas:
        assert hasattr(coco_eval.params, "kpt_oks_sigmas"), "pycocotools is too old"
        coco_eval.params.kpt_oks_sigmas = np.array(sigmas)
    predicted = len(coco_results[0]["keypoints"]) // 3
    expected = len(coco_eval.params.kpt_oks_sigmas)
    assert predicted == expected, (
        f"predictions have {predicted} keypoints, but kpt_oks_sigmas or the ground truth {expected}"
    )


class COCOevalMaxDets(COCOeval):
    """COCOeval whose summary works for any ``maxDets``: the AP figures use its last value.

    The original looks the AP up at 100 detections whatever ``maxDets`` is.
    """

    def summarize(self) -> None:
        """Fill ``stats`` with AP, AP50, AP75, AP by area and AR as the original; log them."""
        if not self.eval:
            raise RuntimeError("summarize() comes after accumulate()")
        if self.params.iouType == "keypoints":
            super().summarize()
            return
        most = self.params.maxDets[-1]
        rows = [
            ("precision", most, None, "all"),
            ("precision", most, 0.5, "all"),
            ("precision", most, 0.75, "all"),
            *(("precision", most, None, area) for area in ("small", "medium", "large")),
            *(("recall", max_dets, None, "all") for max_dets in self.params.maxDets[:3]),
            *(("recall", most, None, area) for area in ("small", "medium", "large")),
        ]
        self.stats = np.array([self._mean(*row) for row in rows])
        lines = [self._line(*row, value) for row, value in zip(rows, self.stats, strict=True)]
        logging.getLogger(__name__).info("COCO summary:\n%s", "\n".join(lines))

    def _mean(self, kind: str, max_dets: int, iou: float | None, area: str) -> float:
        """Return mean precision or recall at an IoU (None: all) and an area; -1 if undefined."""
        area_index = self.params.areaRngLbl.index(area)
        dets_index = list(self.params.maxDets).index(max_dets)
        values = self.eval[kind][..., area_index, dets_index]
        if iou is not None:
            values = values[np.isclose(self.params.iouThrs, iou)]
        values = values[values > -1]
        return float(np.mean(values)) if values.size else -1.0

    def _line(self, kind: str, max_dets: int, iou: float | None, area: str, value: float) -> str:
        thresholds = self.params.iouThrs
        span = f"{thresholds[0]:0.2f}:{thresholds[-1]:0.2f}" if iou is None else f"{iou:0.2f}"
        name = {"precision": "Average Precision  (AP)", "recall": "Average Recall     (AR)"}[kind]
        return (
            f" {name} @[ IoU={span:<9} | area={area:>6s} | maxDets={max_dets:>3d} ] = {value:0.3f}"
        )
