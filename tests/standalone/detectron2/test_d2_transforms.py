"""Images, boxes, polygons and masks change together."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import polygons_to_bitmask

SIZE = (96, 128)
BOX = np.array([[30.0, 20.0, 90.0, 60.0]])

GEOMETRY = {
    "hflip": T.HFlipTransform(SIZE[1]),
    "vflip": T.VFlipTransform(SIZE[0]),
    "resize": T.ResizeTransform(*SIZE, 150, 77),
    "crop": T.CropTransform(20, 10, 90, 70),
    "pad": T.PadTransform(3, 5, 7, 2),
    "extent": T.ExtentTransform((-10.0, 5.0, 100.0, 90.0), (80, 120)),
    "rotation": T.RotationTransform(*SIZE, 25.0),
    "rotation_fixed": T.RotationTransform(*SIZE, -14.0, expand=False, center=(50.0, 30.0)),
    "list": T.TransformList([T.HFlipTransform(SIZE[1]), T.ResizeTransform(*SIZE, 50, 200)]),
}


def box_image(box: np.ndarray) -> np.ndarray:
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box.astype(int)
    image[y0:y1, x0:x1] = 255
    return image


@pytest.mark.parametrize("name", GEOMETRY)
def test_polygons_follow_the_image(name):
    """The transformed polygon covers the transformed white box (shape drawn on the new canvas)."""
    tfm = GEOMETRY[name]
    image = tfm.apply_image(box_image(BOX[0]))
    x0, y0, x1, y1 = BOX[0]
    polygon = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    moved = [np.asarray(p).reshape(-1) for p in tfm.apply_polygons([polygon.copy()])]
    drawn = polygons_to_bitmask(moved, *image.shape[:2])
    white = image[:, :, 0] > 127
    overlap = (drawn & white).sum() / (drawn | white).sum()
    assert overlap > 0.96, overlap


@pytest.mark.parametrize("name", GEOMETRY)
def test_segmentation_follows_the_image(name):
    tfm = GEOMETRY[name]
    image = box_image(BOX[0])
    mask = (image[:, :, 0] > 0).astype(np.uint8)
    moved_mask = tfm.apply_segmentation(mask)
    moved_image = tfm.apply_image(image)[:, :, 0] > 127
    assert moved_mask.shape == moved_image.shape
    assert set(np.unique(moved_mask)) <= {0, 1}
    assert ((moved_mask > 0) != moved_image).mean() < 0.02


@pytest.mark.parametrize("name", ["hflip", "vflip", "resize", "rotation", "crop", "pad"])
def test_inverse_brings_coordinates_back(name):
    tfm = GEOMETRY[name]
    if name == "crop":
        tfm = T.CropTransform(20, 10, 90, 70, SIZE[1], SIZE[0])
    if name == "pad":
        tfm = T.PadTransform(3, 5, 7, 2, SIZE[1], SIZE[0])
    points = np.array([[30.0, 20.0], [64.0, 48.0], [90.5, 60.25]])
    back = tfm.inverse().apply_coords(tfm.apply_coords(points.copy()))
    # A rotated canvas is rounded to whole pixels, so its way back is exact to a pixel.
    np.testing.assert_allclose(back, points, atol=1.0 if name == "rotation" else 1e-9)


def test_boxes_are_scaled_exactly():
    tfm = T.ResizeTransform(*SIZE, 192, 64)
    np.testing.assert_allclose(tfm.apply_box(BOX), [[15.0, 40.0, 45.0, 120.0]])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64, bool])
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_resize_takes_every_kind_of_image(dtype, shape):
    tfm = T.ResizeTransform(8, 6, 4, 12)
    image = np.ones((8, 6, *shape), dtype=dtype)
    if dtype is bool:
        image = image.astype(np.uint8)
    out = tfm.apply_image(image)
    assert out.shape == (4, 12, *shape) and out.dtype == image.dtype
    assert (out == 1).all()


def test_resize_shortest_edge_sizes():
    get = T.ResizeShortestEdge.get_output_shape
    # The usual COCO cases: 480x640 and 375x500 to 800 / 1333.
    assert get(480, 640, 800, 1333) == (800, 1067)
    assert get(375, 500, 800, 1333) == (800, 1067)
    # A panorama is limited by its longer side.
    assert get(200, 1000, 800, 1333) == (267, 1333)
    assert get(1000, 200, 800, 1333) == (1333, 267)


def test_resize_shortest_edge_draws_from_range_and_choice():
    np.random.seed(0)
    image = np.zeros((100, 200, 3), np.uint8)
    ranged = {T.ResizeShortestEdge((10, 12)).get_transform(image).new_h for _ in range(60)}
    assert ranged == {10, 11, 12}
    aug = T.ResizeShortestEdge([10, 40], sample_style="choice")
    assert {aug.get_transform(image).new_h for _ in range(60)} == {10, 40}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)


@pytest.mark.parametrize(
    ("crop_type", "crop_size", "low", "high"),
    [
        ("relative", (0.5, 0.25), (50, 50), (50, 50)),
        ("relative_range", (0.5, 0.5), (50, 100), (100, 200)),
        ("absolute", (30, 500), (30, 200), (30, 200)),
        ("absolute_range", (20, 150), (20, 20), (100, 150)),
    ],
)
def test_random_crop_stays_inside_and_in_range(crop_type, crop_size, low, high):
    np.random.seed(0)
    image = np.zeros((100, 200, 3), np.uint8)
    aug = T.RandomCrop(crop_type, crop_size)
    for _ in range(50):
        tfm = aug.get_transform(image)
        assert low[0] <= tfm.h <= high[0] and low[1] <= tfm.w <= high[1]
        assert tfm.apply_image(image).shape[:2] == (tfm.h, tfm.w)


def test_random_flip_frequency_and_arguments():
    np.random.seed(0)
    image = np.zeros((10, 20, 3), np.uint8)
    flips = [
        isinstance(T.RandomFlip(0.3).get_transform(image), T.HFlipTransform) for _ in range(2000)
    ]
    assert 0.26 < np.mean(flips) < 0.34
    vertical = T.RandomFlip(1.0, horizontal=False, vertical=True).get_transform(image)
    assert isinstance(vertical, T.VFlipTransform)
    with pytest.raises(ValueError, match="both"):
        T.RandomFlip(horizontal=True, vertical=True)
    with pytest.raises(ValueError, match="one of"):
        T.RandomFlip(horizontal=False)


def test_augmentations_are_repeatable_by_seed():
    augs = [
        T.ResizeShortestEdge((40, 90)),
        T.RandomFlip(),
        T.RandomCrop("relative_range", (0.5, 0.5)),
        T.RandomApply(T.RandomBrightness(0.5, 1.5), 0.5),
        T.RandomContrast(0.5, 1.5),
        T.RandomSaturation(0.5, 1.5),
        T.RandomLighting(10.0),
        T.FixedSizeCrop((64, 64)),
        T.RandomRotation((-10, 10)),
        T.RandomExtent((0.8, 1.2), (0.1, 0.1)),
    ]
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)

    def run(seed: int) -> np.ndarray:
        np.random.seed(seed)
        return T.apply_augmentations(augs, image.copy())[0]

    np.testing.assert_array_equal(run(1), run(1))
    first, second = run(1), run(2)
    assert first.shape != second.shape or (first != second).any()


def test_each_augmentation_sees_what_the_one_before_made():
    seen = []

    class Look(T.Augmentation):
        def get_transform(self, image, boxes):
            seen.append((image.shape[:2], boxes.copy()))
            return T.NoOpTransform()

    aug_input = T.AugInput(np.zeros((*SIZE, 3), np.uint8), boxes=BOX.copy())
    tfms = T.AugmentationList([T.Resize((48, 64)), Look(), T.HFlipTransform(64)])(aug_input)
    assert seen[0][0] == (48, 64)
    np.testing.assert_allclose(seen[0][1], BOX / 2)
    np.testing.assert_allclose(aug_input.boxes, [[19.0, 10.0, 49.0, 30.0]])
    assert len(tfms) == 3
    np.testing.assert_allclose(tfms.apply_box(BOX.copy()), aug_input.boxes)


def test_augmentation_names_missing_inputs_and_bad_signatures():
    class NeedsDepth(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    class Variadic(T.Augmentation):
        def get_transform(self, image, *rest):
            return T.NoOpTransform()

    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(AttributeError, match="depth"):
        NeedsDepth()(T.AugInput(image))
    with pytest.raises(TypeError, match="signature"):
        Variadic()(T.AugInput(image))
    assert T.TransformGen is T.Augmentation
    assert repr(T.RandomFlip(prob=0.25)) == "RandomFlip(prob=0.25)"


def test_brightness_contrast_saturation_formulas():
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (5, 7, 3)).astype(np.float32)
    weight = 0.3
    bright = T.RandomBrightness(weight, weight).get_transform(image).apply_image(image.copy())
    np.testing.assert_allclose(bright, image * weight, rtol=1e-5)
    contrast = T.RandomContrast(weight, weight).get_transform(image).apply_image(image.copy())
    np.testing.assert_allclose(contrast, image * weight + image.mean() * 0.7, rtol=1e-4)
    gray = T.RandomSaturation(0.0, 0.0).get_transform(image).apply_image(image.copy())
    np.testing.assert_allclose(gray[..., 0], gray[..., 2], rtol=1e-6)
    luma = torch.tensor(image) @ torch.tensor([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray[..., 0], luma.numpy(), rtol=1e-5)


def test_plain_integer_images_other_than_uint8_are_refused():
    with pytest.raises(AssertionError, match="uint8"):
        T.AugInput(np.zeros((4, 4, 3), np.int32))


def star(points: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a random star-shaped polygon, in general not convex."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = rng.uniform(8, 45, points)
    center = rng.uniform(20, 90, 2)
    return center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_cropped_polygons_cover_the_cropped_mask():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(40):
        polygon = star(int(rng.integers(3, 12)), rng)
        left, top = (int(v) for v in rng.integers(10, 60, 2))
        crop = T.CropTransform(left, top, 50, 40)
        # Drawn on a margin, so that no polygon leaves the canvas before the crop.
        whole = polygons_to_bitmask([(polygon + 40).reshape(-1)], 220, 220)
        expected = whole[40 + top : 80 + top, 40 + left : 90 + left]
        cut = crop.apply_polygons([polygon.copy()])
        if not cut:
            assert expected.sum() <= 5
            continue
        drawn = polygons_to_bitmask([p.reshape(-1) for p in cut], 40, 50)
        assert (drawn != expected).sum() <= 0.06 * max(expected.sum(), 200)
        compared += 1
    assert compared > 20


def test_polygons_outside_of_a_crop_vanish_and_inside_stay():
    crop = T.CropTransform(10, 10, 30, 20)
    inside = np.array([[12.0, 12.0], [20.0, 12.0], [16.0, 25.0]])
    outside = inside + 50
    kept = crop.apply_polygons([inside.copy(), outside])
    assert len(kept) == 1
    assert {tuple(p) for p in kept[0]} == {tuple(p) for p in inside - 10}
