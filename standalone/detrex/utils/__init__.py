"""Helpers shared by the other packages."""

from detrex.utils.dist import get_world_size, is_dist_avail_and_initialized
from detrex.utils.events import WandbWriter
from detrex.utils.misc import interpolate, inverse_sigmoid

__all__ = [
    "WandbWriter",
    "get_world_size",
    "interpolate",
    "inverse_sigmoid",
    "is_dist_avail_and_initialized",
]
