"""Draw predictions on the frames of a video, under detectron2's names."""

from typing import Any

import torch

from .visualizer import ColorMode, Visualizer

__all__ = ["VideoVisualizer"]


class VideoVisualizer:
    """Draw predictions on frames, each on its own.

    Differs from detectron2's: objects are not followed from frame to frame, so that an instance
    may change its color.

    Args:
        metadata: of the data set: ``thing_classes``, ``thing_colors``, ...
        instance_mode: how to color predictions.
    """

    def __init__(self, metadata: Any, instance_mode: ColorMode = ColorMode.IMAGE) -> None:
        self.metadata = metadata
        self._instance_mode = instance_mode

    def _visualizer(self, frame: Any) -> Visualizer:
        return Visualizer(frame, self.metadata, instance_mode=self._instance_mode)

    def draw_instance_predictions(self, frame: Any, predictions: Any) -> Any:
        """Draw ``Instances`` on a frame [H, W, 3], RGB in [0, 255]; return the canvas."""
        return self._visualizer(frame).draw_instance_predictions(predictions)

    def draw_sem_seg(self, frame: Any, sem_seg: torch.Tensor, area_threshold: int = 0) -> Any:
        """Draw a map [H, W] of classes on a frame; return the canvas."""
        return self._visualizer(frame).draw_sem_seg(sem_seg, area_threshold=area_threshold)
