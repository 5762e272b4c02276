"""Images are normalized; those that cannot be used are refused with the record's name."""

import pytest
import torch
from torch.nn import functional as F

from tests.small_detectors import build, record
from tokendetr.detector.images import pad_images, read_images
from tokendetr.detector.pyramid import build_pyramid, covered_size
from tokendetr.detector.targets import prepare_targets

MEAN, STD = torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 50.0)


def read(records):
    return read_images(records, pixel_mean_C11=MEAN, pixel_std_C11=STD)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 8, 8), r"\[3, H, W\], got \[1, 8, 8\]"),
        (torch.zeros(8, 8, 3), r"\[3, H, W\], got \[8, 8, 3\]"),
        (torch.zeros(1, 3, 8, 8), r"\[3, H, W\], got \[1, 3, 8, 8\]"),
        (torch.zeros(3, 0, 8), r"\[3, H, W\], got \[3, 0, 8\]"),
        (None, "must be a tensor"),
        ([[1, 2]], "must be a tensor"),
    ],
)
def test_wrong_images_are_named(image, words):
    records = [record(8, 8), {"image": image, "file_name": "street.jpg"}]
    with pytest.raises(ValueError, match=words) as error:
        read(records)
    assert "street.jpg" in str(error.value)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch is empty"):
        read([])


def test_images_of_bytes_are_normalized_and_padded_with_zeros():
    images = [torch.full((3, 2, 3), 200, dtype=torch.uint8), torch.zeros(3, 1, 4)]
    batch = read([{"image": image} for image in images])
    assert batch.sizes == [(2, 3), (1, 4)]
    padded = pad_images(batch.images, batch.padding.canvas(batch.sizes))
    assert padded.shape == (2, 3, 2, 4)
    assert (padded[0, :, :, :3] == 2.0).all()
    assert (padded[0, :, :, 3] == 0.0).all()
    assert (padded[1, :, :1] == -2.0).all()
    assert (padded[1, :, 1] == 0.0).all()


def targets_of(records, num_classes=5):
    return prepare_targets(records, num_classes=num_classes, device=torch.device("cpu"))


def test_ground_truth_becomes_fractions_of_the_image():
    (target,) = targets_of([record(100, 200, [[20, 10, 60, 50]])])
    assert target["boxes"].tolist() == [pytest.approx([0.2, 0.3, 0.2, 0.4])]
    assert target["labels"].tolist() == [0]
    (empty,) = targets_of([record(100, 200)])
    assert empty["boxes"].shape == (0, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_boxes_that_are_not_finite_are_named(value):
    bad = record(100, 200, [[20, 10, 60, 50], [0, 0, value, 5]]) | {"image_id": 77}
    with pytest.raises(ValueError, match=r"image_id=77.*gt_boxes\[1\] is not finite"):
        targets_of([record(10, 10), bad])


@pytest.mark.parametrize("label", [-1, 5, 80])
def test_classes_the_model_does_not_have_are_named(label):
    bad = record(100, 200, [[20, 10, 60, 50]])
    bad["instances"].gt_classes = torch.tensor([label])
    with pytest.raises(ValueError, match=rf"gt_classes\[0\] is {label}.*0\.\.4"):
        targets_of([bad])


def test_training_without_instances_is_refused():
    model = build("dino").train()
    with pytest.raises(ValueError, match="training needs 'instances'"):
        model([{"image": torch.zeros(3, 32, 32), "file_name": "a.jpg"}])


@pytest.mark.parametrize("canvas", [33, 64, 90, 127])
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_covered_size_is_what_nearest_interpolation_gives(canvas, stride):
    level = -(-canvas // stride)
    for image in range(1, canvas + 1):
        mask = torch.ones(1, 1, canvas, dtype=torch.float64)
        mask[..., :image] = 0
        expected = int((F.interpolate(mask, size=level) == 0).sum())
        found, _ = covered_size((image, 1), (canvas, 1), (level, 1))
        assert abs(found - expected) <= (image * level % canvas == 0)
        if canvas % level == 0:
            assert found == expected


def pyramid_of(model, records, *, share_canvas):
    batch = read_images(records, pixel_mean_C11=model.pixel_mean, pixel_std_C11=model.pixel_std)
    with torch.no_grad():
        return build_pyramid(
            model.backbone,
            model.neck,
            model.position_embedding,
            batch,
            share_canvas=share_canvas,
        )


def test_separate_features_are_those_of_each_image_alone():
    model = build("dino").eval()
    records = [record(64, 96, seed=1), record(40, 50, seed=2), record(64, 96, seed=3)]
    together = pyramid_of(model, records, share_canvas=False)
    for image, one in enumerate(records):
        alone = pyramid_of(model, [one], share_canvas=False)
        for level, feature in enumerate(alone.features):
            height, width = feature.shape[-2:]
            for ours, theirs in (
                (together.features[level], feature),
                (together.positions[level], alone.positions[level]),
            ):
                torch.testing.assert_close(
                    ours[image, :, :height, :width], theirs[0], rtol=1e-4, atol=1e-5
                )
            valid = together.layout.grid(together.layout.valid_BN, level)[image]
            assert int(valid.sum()) == height * width
            assert valid[:height, :width].all()


@pytest.mark.parametrize("sizes", [[(64, 96)] * 2, [(40, 50)], [(5, 90)]])
def test_positions_are_bitwise_those_of_the_module(sizes):
    model = build("dino").eval()
    pyramid = pyramid_of(model, [record(*size) for size in sizes], share_canvas=False)
    for level, position in enumerate(pyramid.positions):
        mask = pyramid.layout.grid(pyramid.layout.padding_BN, level)
        assert torch.equal(position, model.position_embedding(mask))


def test_training_runs_the_backbone_once_on_one_canvas():
    model = build("dino").train()
    seen = []
    model.backbone.register_forward_hook(lambda m, inputs, output: seen.append(inputs[0].shape))
    model([record(64, 96, [[5, 5, 30, 30]]), record(40, 50)])
    assert seen == [(2, 3, 64, 96)]
