"""Boxes on an image: positions of lines and labels, and their colors."""

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw

from tokendetr.visualization import boxes as module
from tokendetr.visualization.boxes import DrawnBox, annotated_boxes, class_color, draw_boxes

GRAY = np.full((240, 320, 3), 128, dtype=np.uint8)
RED = (255, 0, 0)


@pytest.fixture()
def labels(monkeypatch):
    """Collect the texts of a drawing with their rectangles."""
    written = []
    text = ImageDraw.ImageDraw.text

    def record(pen, corner, words, **options):
        written.append((words, pen.textbbox(corner, words, font=options["font"])))
        return text(pen, corner, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return written


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("kind", ["spread", "one place", "border"])
def test_labels_are_inside_the_image_and_never_overlap(labels, kind):
    generator = np.random.default_rng(0)
    corners = {
        "spread": generator.uniform(0, 200, (12, 2)),
        "one place": np.full((12, 2), 100.0),
        "border": generator.choice([-5.0, 290.0], (12, 2)),
    }[kind]
    drawn = [
        DrawnBox((x, y, x + 40, y + 30), f"striped_disc {n}%", class_color(n))
        for n, (x, y) in enumerate(corners.tolist())
    ]
    draw_boxes(GRAY, drawn)
    assert len(labels) == 12
    places = [place for _, place in labels]
    assert not [pair for n, one in enumerate(places) for pair in places[:n] if overlap(one, pair)]
    for left, top, right, bottom in places:
        assert left >= 0 and top >= 0 and right <= 320 and bottom <= 240


def test_labels_without_room_are_dropped_and_the_most_important_stay(labels):
    tiny = np.zeros((24, 60, 3), dtype=np.uint8)
    draw_boxes(tiny, [DrawnBox((5, 5, 20, 20), f"word {n}", RED) for n in range(9)])
    assert labels[0][0] == "word 0" and len(labels) < 9


def reds(box: DrawnBox, scale: float = 1.0) -> np.ndarray:
    image = np.asarray(draw_boxes(GRAY, [box], scale=scale))
    return (image == RED).all(axis=2)


def test_truth_is_dashed_and_detections_are_not():
    whole = reds(DrawnBox((50, 50, 200, 150), "", RED))
    dashed = reds(DrawnBox((50, 50, 200, 150), "", RED, is_truth=True))
    assert whole[50, 50:200].all() and whole[50:150, 200].all()
    assert 0.4 < dashed[50, 50:200].mean() < 0.7
    assert 0.4 < dashed[50:150, 50].mean() < 0.7


def test_a_drawing_is_enlarged_with_its_boxes():
    large = reds(DrawnBox((50, 60, 200, 150), "", RED), scale=2.0)
    assert large.shape == (480, 640)
    rows, columns = np.nonzero(large)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (120, 300, 100, 400)


def test_a_class_has_one_color_and_near_classes_have_unlike_ones():
    colors = np.array([class_color(index) for index in range(80)])
    assert len({tuple(color) for color in colors.tolist()}) == 80
    distance = np.abs(colors[:12, None] - colors[None, :12]).sum(axis=2)
    assert distance[~np.eye(12, dtype=bool)].min() > 50
    record = {"bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3}
    (box,) = annotated_boxes([record], ["a", "b", "c", "d"])
    assert box == DrawnBox((10.0, 20.0, 40.0, 60.0), "d", class_color(3), is_truth=True)


def test_small_images_are_enlarged_until_labels_are_readable():
    assert module.legible_scale(np.zeros((100, 160, 3))) == 4.0
    assert module.legible_scale(np.zeros((800, 1333, 3))) == 1.0
    assert isinstance(draw_boxes(GRAY, []), Image.Image)
