"""The shapes data set: seeded images with COCO-format annotations, made on any machine.

Twelve categories, each a pair of an outline (disc, square, triangle, cross) and a texture (plain,
striped, checked) in colours that say nothing about the category; small to large objects that
occlude each other on cluttered backgrounds; some crowds, some empty images, images of unequal size.
The same seed gives the same annotations everywhere and, under the same Pillow, the same JPEG bytes.
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
