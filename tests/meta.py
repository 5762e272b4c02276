"""Models without memory for their weights."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch


@contextmanager
def meta_device() -> Iterator[None]:
    """Build modules on the meta device, also those that read a tensor's values for their depth.

    detectron2's Swin asks ``torch.linspace`` for the rates of stochastic depth.
    """
    on_the_cpu = functools.partial(torch.linspace, device="cpu")
    with torch.device("meta"), mock.patch("torch.linspace", on_the_cpu):
        yield
