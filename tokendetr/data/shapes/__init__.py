"""The shapes data set: synthetic images with COCO-format annotations, reproducible from a seed.

It has twelve categories, each a pair of an outline (disc, square, triangle, cross) and a texture
(plain, striped, checked). Colors carry no information about the category. Small to large objects
occlude each other on cluttered backgrounds; there are crowds, empty images, and images of different
sizes. A seed gives the same annotations on every machine and, with the same Pillow, the same JPEG
bytes.
"""

from tokendetr.data.shapes.build import ShapesSpec, ensure_shapes, shapes_root
from tokendetr.data.shapes.register import register_shapes
from tokendetr.data.shapes.scene import CATEGORIES, Scene, make_scene

__all__ = [
    "CATEGORIES",
    "Scene",
    "ShapesSpec",
    "ensure_shapes",
    "make_scene",
    "register_shapes",
    "shapes_root",
]
