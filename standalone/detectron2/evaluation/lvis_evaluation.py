"""LVIS metrics with the ``lvis`` package, which is needed only when this evaluator is used."""

import copy
import itertools
import json
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import MetadataCatalog
from detectron2.data.datasets._annotation_checks import federated_faults
from detectron2.data.datasets._annotations import read_annotations
from detectron2.evaluation.coco_evaluation import _save_predictions, instances_to_coco_json
from detectron2.evaluation.evaluator import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

__all__ = ["LVISEvaluator"]

_METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]


def _import_lvis() -> Any:
    try:
        import lvis
    except ImportError as error:
        raise ImportError(
            "LVIS evaluation needs the 'lvis' package: pip install lvis (or this project's extra "
            "'lvis')."
        ) from error
    return lvis


class _OldNumpy:
    """numpy with the aliases that version 1.24 removed."""

    float, int, bool = float, int, bool

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextmanager
def _aliases_of_old_numpy(lvis_eval: Any) -> Iterator[None]:
    """Let the module of an evaluation, and no other, see ``numpy.float`` while it runs."""
    module = sys.modules[type(lvis_eval).__module__]
    original = getattr(module, "np", None)
    if original is None:
        yield
        return
    module.np = _OldNumpy()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.np = original  # type: ignore[attr-defined]


class LVISEvaluator(DatasetEvaluator):
    """LVIS's box and mask AP: federated annotations, 300 detections per image.

    Args:
        dataset_name: a registered data set with ``json_file`` in its metadata.
        tasks: which of ``bbox``, ``segm``; found from the predictions when None.
        distributed: collect the predictions of all ranks on rank 0.
        output_dir: for ``instances_predictions.pth`` and ``lvis_instances_results.json``.
        max_dets_per_image: best-scored predictions per image that count; 300 when None.

    Raises:
        ImportError: the ``lvis`` package is missing.
        AnnotationError: the annotations lack fields that LVIS's evaluation needs.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Any = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ) -> None:
        lvis = _import_lvis()
        self._logger = logging.getLogger(__name__)
        self._tasks: tuple[str, ...] | None = (
            (tasks,) if isinstance(tasks, str) else None if tasks is None else tuple(tasks)
        )
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = 300 if max_dets_per_image is None else max_dets_per_image
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = PathManager.get_local_path(self._metadata.json_file)
        found = read_annotations(json_file, f"'{json_file}'", has_file_names=False)
        if found.data.get("annotations"):
            found.faults += federated_faults(found.data)
            found.check(f"'{json_file}'", "LVIS's evaluation cannot use it.")
        self._lvis_api = lvis.LVIS(json_file)
        self._do_evaluation = len(self._lvis_api.get_ann_ids()) > 0
        self._predictions: list[dict[str, Any]] = []
        self._results: dict[str, Any] = OrderedDict()

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: Iterable[dict[str, Any]], outputs: Iterable[dict[str, Any]]) -> None:
        for record, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                instances = output["instances"].to(torch.device("cpu"))
                results = instances_to_coco_json(instances, record["image_id"])
                self._predictions.append({"image_id": record["image_id"], "instances": results})

    def evaluate(self) -> dict[str, Any] | None:
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return None
        if len(predictions) == 0:
            self._logger.warning("No image was processed, so there is nothing to evaluate.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "instances_predictions.pth")
            _save_predictions(predictions, path)
        self._results = OrderedDict()
        self._eval_predictions(predictions)
        return copy.deepcopy(self._results)

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        self._logger.info("Bringing the predictions into LVIS' format")
        lvis_results = [dict(result) for p in predictions for result in p["instances"]]
        has_masks = any("segmentation" in result for result in lvis_results)
        tasks = self._tasks or (("bbox", "segm") if has_masks else ("bbox",))
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        original_id = None if id_map is None else {new: old for old, new in id_map.items()}
        for result in lvis_results:
            # LVIS numbers its categories from 1 without gaps.
            category = result["category_id"]
            result["category_id"] = category + 1 if original_id is None else original_id[category]
        if self._output_dir:
            path = os.path.join(self._output_dir, "lvis_instances_results.json")
            self._logger.info("Saving results to %s", path)
            with PathManager.open(path, "w") as file:
                file.write(json.dumps(lvis_results))
        if not self._do_evaluation:
            self._logger.info(
                "The data set has no annotations: predictions are written, not evaluated."
            )
            return
        self._logger.info("Comparing the predictions with the ground truth")
        for task in sorted(tasks):
            self._results[task] = self._evaluate_task(lvis_results, task)

    def _evaluate_task(self, lvis_results: list[dict[str, Any]], task: str) -> dict[str, float]:
        if not lvis_results:
            self._logger.warning("The model found nothing in any image: every metric is NaN.")
            return dict.fromkeys(_METRICS, float("nan"))
        lvis = _import_lvis()
        if task == "segm":
            # With a box in the result, areas would be taken from it and not from the mask.
            lvis_results = [{k: v for k, v in r.items() if k != "bbox"} for r in lvis_results]
        results_api = lvis.LVISResults(
            self._lvis_api, lvis_results, max_dets=self._max_dets_per_image
        )
        lvis_eval = lvis.LVISEval(self._lvis_api, results_api, task)
        lvis_eval.params.max_dets = self._max_dets_per_image
        with _aliases_of_old_numpy(lvis_eval):
            lvis_eval.run()
            values = lvis_eval.get_results()
        results = {metric: float(values[metric] * 100) for metric in _METRICS}
        self._logger.info("Evaluation results for %s: \n%s", task, create_small_table(results))
        return results
