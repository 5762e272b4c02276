"""Every augmentation, under the module path that configs and saved configs of detectron2 use."""

from detectron2.data.transforms import _color, _geometry, _resize
from detectron2.data.transforms._color import *  # noqa: F403
from detectron2.data.transforms._geometry import *  # noqa: F403
from detectron2.data.transforms._resize import *  # noqa: F403

__all__ = [*_color.__all__, *_geometry.__all__, *_resize.__all__]

for _module in (_color, _geometry, _resize):
    for _name in _module.__all__:
        getattr(_module, _name).__module__ = __name__
