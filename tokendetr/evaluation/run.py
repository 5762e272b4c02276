"""Evaluate a model and its moving average."""

import copy
import logging
import os
from collections import OrderedDict
from typing import Any

from detectron2.config import LazyCall, instantiate
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detrex.modeling.ema import apply_model_ema_and_restore
from omegaconf import DictConfig, ListConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tokendetr.config.parts import built_from, require_methods
from tokendetr.data.named_errors import NamedErrors
from tokendetr.data.random_state import preserved_rng
from tokendetr.data.workers import protect_workers
from tokendetr.errors import ConfigError
from tokendetr.evaluation.first_images import FirstImages
from tokendetr.layers.cpu import optimize
from tokendetr.layers.precision import Precision, check_precision, evaluated_in

__all__ = ["Evaluation", "default_best_metric"]

logger = logging.getLogger(__name__)

_NO_BOXES = "an AP needs a config with dataloader.test, and a dataloader.evaluator of boxes"


class Evaluation:
    """Evaluation of a model by ``dataloader.test`` and ``dataloader.evaluator``.

    Loader and evaluators are built by :meth:`prepare` or on first use, and reused. The state of
    random number generators is preserved, so that evaluations do not affect training.

    Args:
        cfg: the whole config.
        model: may be wrapped in DDP; evaluated without the wrapper.
        precision: "float32", or "bfloat16" (or "bf16") for autocast.
        images: number of test images, the first ones; None for all.

    Raises:
        ValueError: another precision is given.

    Attributes:
        latest: results of the last evaluation.
    """

    def __init__(
        self,
        cfg: DictConfig,
        model: nn.Module,
        *,
        precision: Precision = "float32",
        images: int | None = None,
    ) -> None:
        check_precision(precision)
        self._first = None if images is None else FirstImages(images)
        self._cfg = cfg
        self._precision = precision
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._loader: Any = None
        self._evaluators: dict[str, Any] = {}
        self.latest: OrderedDict[str, Any] = OrderedDict()

    def __call__(self) -> "OrderedDict[str, Any]":
        """Evaluate on all ranks.

        Returns:
            On rank 0 task -> metric -> number, and the moving average's under ``<task>_ema``. Empty
            on other ranks, and for a config without an evaluator.
        """
        results: OrderedDict[str, Any] = OrderedDict()
        if not self._has_test_set():
            logger.warning(
                "The config has no dataloader.evaluator or no dataloader.test: nothing to evaluate"
            )
            return results
        ema = self._cfg.train.model_ema
        with preserved_rng():
            if not (ema.enabled and ema.use_ema_weights_for_eval_only):
                results.update(self._run("") or {})
            if ema.enabled:
                with apply_model_ema_and_restore(self._model):
                    averaged = self._run("_ema") or {}
                results.update({f"{task}_ema": values for task, values in averaged.items()})
        if comm.is_main_process() and results:
            print_csv_format(results)
            if self._first is not None:
                logger.info("These results are of %s", self._first.summary)
        self.latest = results
        return results

    def box_ap(self) -> float:
        """Evaluate, and return the box AP in percent.

        Raises:
            ConfigError: the config has no test set, or no evaluator of boxes.
        """
        results = self()
        if "bbox" not in results:
            raise ConfigError(_NO_BOXES)
        return float(results["bbox"]["AP"])

    def prepare(self, *, required: bool = False) -> None:
        """Build loader and evaluator, so that their errors appear before any work.

        Args:
            required: the config must have both.

        Raises:
            ConfigError: one cannot be built, is of another kind, or is required and not there.
        """
        if not self._has_test_set():
            if required:
                raise ConfigError(_NO_BOXES)
            return
        ema = self._cfg.train.model_ema
        is_averaged_alone = ema.enabled and ema.use_ema_weights_for_eval_only
        with preserved_rng():
            self._parts("_ema" if is_averaged_alone else "")

    def _has_test_set(self) -> bool:
        parts = ("evaluator", "test")
        return all(self._cfg.dataloader.get(part, None) is not None for part in parts)

    def _parts(self, suffix: str) -> tuple[Any, Any]:
        """Return the loader, and the evaluator for the model ("") or its average ("_ema")."""
        if self._loader is None:
            node = copy.deepcopy(self._cfg.dataloader.test)
            if node.get("mapper", None) is not None:
                node.mapper = LazyCall(NamedErrors)(mapper=node.mapper)
            if self._first is not None:
                self._first.restrict_loader(node)
            with built_from("dataloader.test"):
                loader = instantiate(node)
            require_methods("dataloader.test", loader, "a loader", "__iter__", "__len__")
            self._loader = protect_workers(loader)
        if suffix not in self._evaluators:
            self._evaluators[suffix] = self._build_evaluator(suffix)
        return self._loader, self._evaluators[suffix]

    def _run(self, suffix: str) -> Any:
        loader, evaluator = self._parts(suffix)
        with optimize(self._model), evaluated_in(self._precision, self._model):
            return inference_on_dataset(self._model, loader, evaluator)

    def _build_evaluator(self, suffix: str) -> Any:
        node = copy.deepcopy(self._cfg.dataloader.evaluator)
        for each in node if isinstance(node, ListConfig) else [node]:
            folder = each.get("output_dir", None)
            if suffix and folder:
                # So that the moving average's result files do not overwrite the model's.
                each.output_dir = os.path.join(folder, suffix.lstrip("_"))
        with built_from("dataloader.evaluator"):
            evaluator = instantiate(node)
        for each in evaluator if isinstance(node, ListConfig) else [evaluator]:
            methods = ("reset", "process", "evaluate")
            require_methods("dataloader.evaluator", each, "an evaluator", *methods)
        return evaluator if self._first is None else self._first.restrict_evaluator(evaluator)


def default_best_metric(cfg: DictConfig) -> str:
    """Return ``train.best_metric``, by default the box AP of the evaluated weights."""
    if cfg.train.best_metric:
        return str(cfg.train.best_metric)
    ema = cfg.train.model_ema
    return "bbox_ema/AP" if ema.enabled and ema.use_ema_weights_for_eval_only else "bbox/AP"
