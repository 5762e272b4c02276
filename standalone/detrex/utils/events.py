"""Event writer for Weights & Biases."""

from typing import Any

import numpy as np
from detectron2.utils.events import EventWriter, get_event_storage
from omegaconf import OmegaConf


class WandbWriter(EventWriter):
    """Write all scalars and images of the event storage to a wandb run.

    Args:
        cfg: the whole config; ``cfg.train.wandb.params`` are the arguments of ``wandb.init``.
        window_size: number of values that smoothed scalars take the median of.
        **kwargs: ignored.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, cfg: Any, window_size: int = 20, **kwargs: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "train.wandb.enabled=True needs the package wandb: pip install wandb,"
                " or set train.wandb.enabled=False"
            ) from error
        self._image = wandb.Image
        self._window_size = window_size
        plain = OmegaConf.to_container(cfg, resolve=True)
        self._writer = wandb.init(config=plain, **cfg.train.wandb.params)
        self._last_write = -1

    def write(self) -> None:
        """Send what is new since the last call."""
        storage = get_event_storage()
        last_write = self._last_write
        by_name = storage.latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in by_name.items():
            if iteration > last_write:
                self._writer.log({name: value}, step=iteration)
                self._last_write = max(self._last_write, iteration)
        if storage._vis_data:
            for name, image, iteration in storage._vis_data:
                pixels = np.asarray(image).transpose(1, 2, 0)
                self._writer.log({name: self._image(pixels, caption=name)}, step=iteration)
            storage.clear_images()

    def close(self) -> None:
        """End the run."""
        self._writer.finish()
