"""Evaluation on the first images of a test set, for a quick look."""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import LazyCall
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from omegaconf import DictConfig

from tokendetr.errors import ConfigError

__all__ = ["FirstImages"]


class FirstImages:
    """The first images of a data set, and evaluators that count no others.

    Args:
        count: number of images.

    Attributes:
        summary: what was evaluated, such as "the first 50 of 250 test images".
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._ids: list[Any] = []
        self.summary = ""

    def restrict_loader(self, node: DictConfig) -> None:
        """Make a test loader's node read the first images alone, in place.

        Raises:
            ConfigError: the node has no data set.
        """
        if node.get("dataset", None) is None:
            raise ConfigError(
                "dataloader.test has no dataset, so its first images cannot be chosen: evaluate "
                "without --images"
            )

        # A function, for copies of the node copy an object with its methods.
        def chosen(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            first = list(records[: self._count])
            self._ids = [record["image_id"] for record in first]
            self.summary = f"the first {len(first)} of {len(records)} test images"
            return first

        node.dataset = LazyCall(chosen)(records=node.dataset)

    def restrict_evaluator(self, evaluator: Any) -> DatasetEvaluator:
        """Return an evaluator, or several, that ignores the labels of all other images.

        Raises:
            ConfigError: an evaluator of detectron2 cannot leave images out.
        """
        if isinstance(evaluator, DatasetEvaluators):
            evaluator = evaluator._evaluators
        if isinstance(evaluator, Iterable):
            return DatasetEvaluators([self.restrict_evaluator(each) for each in evaluator])
        if "img_ids" in inspect.signature(evaluator.evaluate).parameters:
            return _OnImages(evaluator, self._ids)
        if type(evaluator).__module__.startswith("detectron2."):
            raise ConfigError(
                f"{type(evaluator).__name__} counts objects of images that were not evaluated as "
                "missed: evaluate without --images"
            )
        return evaluator  # a mean over the images that it is given


class _OnImages(DatasetEvaluator):
    """An evaluator in COCO's way, given the ids of the images that count."""

    def __init__(self, evaluator: Any, image_ids: Sequence[Any]) -> None:
        self._evaluator = evaluator
        self._image_ids = image_ids

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        return self._evaluator.evaluate(img_ids=self._image_ids)
