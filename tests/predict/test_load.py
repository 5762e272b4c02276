"""A trained detector in three lines: its inputs, its results, its refusals."""

import math
import re

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from PIL import Image

from tests.small_shapes import small_shapes
from tokendetr import load
from tokendetr.config import load_config
from tokendetr.errors import ConfigError, NotSparsifiableError, TooSlowError
from tokendetr.predict.detector import _as_rgb
from tokendetr.predict.predictor import Predictor, build_model, read_rgb


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with small_shapes(tmp_path_factory, num_train=1, num_val=3) as folder:
        yield folder


@pytest.fixture(scope="module")
def detector(folder):
    return load("dino_shapes", device="cpu")


@pytest.fixture(scope="module")
def paths(folder):
    return sorted((folder / "val").rglob("*.png")) or sorted((folder / "val").rglob("*.jpg"))


def boxes(detections):
    return detections.instances.pred_boxes.tensor


def test_trained_weights_find_objects(detector, paths):
    results = detector(str(paths[0]))
    assert len(results) > 0 and results.source == str(paths[0])
    assert all(0.3 <= found.score <= 1 and found.label in detector.names for found in results)
    scores = [found.score for found in results]
    assert scores == sorted(scores, reverse=True)
    assert "dino_shapes" in repr(detector)


def test_every_kind_of_image_gives_the_same(detector, paths):
    expected = boxes(detector(str(paths[0])))
    image = Image.open(paths[0]).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for kind in (paths[0], image, array, tensor, tensor.double() / 255):
        torch.testing.assert_close(boxes(detector(kind)), expected, rtol=1e-4, atol=1e-2)


def test_lists_folders_patterns_and_batches(detector, paths):
    one_by_one = [detector(str(path)) for path in paths]
    for several in (
        detector([str(path) for path in paths]),
        detector(str(paths[0].parent)),
        detector(f"{paths[0].parent}/*"),
        detector(list(paths), batch_size=2),
    ):
        assert [found.source for found in several] == [str(path) for path in paths]
        for actual, expected in zip(several, one_by_one, strict=True):
            torch.testing.assert_close(boxes(actual), boxes(expected), rtol=1e-4, atol=1e-2)
    assert isinstance(detector([paths[0]]), list)
    assert detector([]) == []


def test_results_as_records_and_as_a_drawing(detector, paths, tmp_path, monkeypatch):
    results = detector(paths[0])
    records = results.records(image_id=7)
    assert len(records) == len(results)
    first, record = next(iter(results)), records[0]
    x0, y0, x1, y1 = first.box_xyxy_px
    assert record["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
    assert record["image_id"] == 7 and record["category_name"] == first.label
    assert record["category_id"] == detector.category_ids[first.class_index]
    drawing = results.plot(str(tmp_path / "drawn.png"))
    with Image.open(tmp_path / "drawn.png") as saved:
        assert saved.size == drawing.size and max(drawing.size) == 640  # legible
    plain = results.plot(scale=1.0)
    assert plain.size == Image.open(paths[0]).size
    assert (np.asarray(plain) != results.image_HWC).any()
    monkeypatch.setenv("HOME", str(tmp_path))
    results.plot("~/home.png")
    assert (tmp_path / "home.png").is_file()
    for scale in (0, math.nan):
        with pytest.raises(ValueError, match="scale must be a positive number"):
            results.plot(scale=scale)


def test_thresholds_and_precision(detector, paths):
    assert len(detector(paths[0], threshold=0.0)) == 100
    assert len(detector(paths[0], threshold=1.0)) == 0
    low = load("dino_shapes", device="cpu", precision="bf16")(paths[0])
    assert low.instances.scores.float().max() == pytest.approx(
        float(detector(paths[0]).instances.scores.max()), abs=0.05
    )
    with pytest.raises(ValueError, match="threshold"):
        detector(paths[0], threshold=1.5)
    with pytest.raises(ValueError, match="precision"):
        load("dino_shapes", device="cpu", precision="int8")


def test_a_model_left_in_training_mode_detects_and_stays_in_it(detector, paths):
    expected = detector(paths[0])
    detector.model.train()
    detector.model.backbone.eval()  # as of a part that is frozen
    try:
        found = detector(paths[0])
        assert detector.model.training and detector.model.transformer.training
        assert not any(module.training for module in detector.model.backbone.modules())
    finally:
        detector.model.eval()
    torch.testing.assert_close(found.instances.scores, expected.instances.scores)


def test_weights_that_an_override_names_are_not_those_of_the_config():
    other = ["train.init_checkpoint=nowhere.pth"]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load("dino_shapes", device="cpu", overrides=other)


def test_a_sparse_detector_takes_a_keep_ratio(folder):
    sparse = load("sparse_dino_shapes", device="cpu", keep=0.5)
    assert sparse.model.transformer.encoder.sparsifier.keep_ratio == 0.5
    with pytest.raises(ConfigError, match="tokendetr sparsify"):
        load("dino_shapes", device="cpu", keep=0.5)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("https://example.org/a.jpg", ValueError, "URLs are not downloaded"),
        ("nowhere.jpg", FileNotFoundError, "nowhere.jpg"),
        ("nowhere.mp4", FileNotFoundError, "nowhere.mp4"),
        (3, TypeError, "image 0 is a int"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"\[4, 4, 4\]"),
        (np.zeros((4, 4, 3)), ValueError, "float64"),
        (torch.zeros(4, 4, 3), ValueError, r"\[3, H, W\]"),
        (torch.full((3, 4, 4), 200.0), ValueError, r"\[0, 1\]"),
        (torch.zeros(3, 0, 4), ValueError, r"\[3, 0, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"\[0, 4, 3\]"),
        (Image.new("I", (4, 4)), ValueError, "mode I .* range"),
        (Image.new("F", (4, 4)), ValueError, "mode F .* range"),
        (Image.new("RGB", (0, 4)), ValueError, r"\[4, 0, 3\]"),
        ((each for each in ()), TypeError, "image 0 is a generator"),
        ("", FileNotFoundError, "no image at ''"),
    ],
)
def test_files_that_are_not_images_are_named(detector, images, error, message):
    with pytest.raises(error, match=message):
        detector(images)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I;16B"])
def test_a_pil_image_is_read_as_its_file_is(tmp_path, mode):
    values = np.arange(0, 64 * 64 * 16, 16).astype(">u2" if mode == "I;16B" else np.uint16)
    if mode.startswith("I"):
        image = Image.frombytes(mode, (64, 64), values.tobytes())
    else:
        image = Image.fromarray((values % 256).astype(np.uint8).reshape(64, 64)).convert(mode)
    path = tmp_path / "image.tiff"
    image.save(path)
    np.testing.assert_array_equal(_as_rgb(image, 0), read_rgb(path))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3)),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((0, 8, 3), np.uint8),
        torch.zeros(3, 8, 8),
        "a.jpg",
        None,
    ],
    ids=repr,
)
def test_the_predictor_refuses_what_is_no_uint8_rgb(image):
    predictor = Predictor(torch.nn.Identity())
    with pytest.raises(ValueError, match="the image is"):
        predictor(image)
    assert predictor.batch([]) == []


def test_a_damaged_file_is_named(detector, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"broken\.jpg"):
        detector(tmp_path / "broken.jpg")


def test_a_config_may_be_given_as_a_path(tmp_path):
    path = tmp_path / "mine.yaml"
    LazyConfig.save(load_config("dino_shapes"), str(path))
    assert load_config(path).model == load_config(str(path)).model
    assert load(path, "random", device="cpu").names == load("dino_shapes", device="cpu").names


def test_configs_without_weights_and_unknown_names(tmp_path):
    with pytest.raises(KeyError, match="dino_shapes"):
        load("dino_shape")
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a run"):
        load(str(tmp_path))
    with pytest.raises(ConfigError, match="weights="):
        load("dab_deformable_detr_shapes", device="cpu")
    untrained = load("dab_deformable_detr_shapes", "random", device="cpu")
    assert "random" in repr(untrained)


def test_weights_of_a_backbone_alone_are_named(detector, tmp_path, caplog):
    weights = detector.model.backbone.state_dict()
    torch.save({"model": weights}, tmp_path / "backbone.pth")
    file = f"train.init_checkpoint={tmp_path / 'backbone.pth'}"
    build_model(load_config("dino_shapes", ["train.device=cpu", file]))
    assert re.search(r"backbone\.pth does not set \d+ of the model's tensors", caplog.text)


def test_a_time_limit_chooses_the_keep_ratio(folder, paths, monkeypatch):
    def seconds(run, device):
        run()
        return 0.010 + 0.1 * sparse.model.transformer.encoder.sparsifier.keep_ratio

    sparse = load("sparse_dino_shapes", device="cpu", keep=0.9)
    monkeypatch.setattr("tokendetr.analysis.keep_ratio_search.timed", seconds)
    assert sparse.keep_within(46) == 0.35
    assert sparse.model.transformer.encoder.sparsifier.keep_ratio == 0.35
    assert len(sparse(paths[0])) > 0
    with pytest.raises(TooSlowError, match="limit is 12 ms"):
        sparse.keep_within(12)
    assert sparse.model.transformer.encoder.sparsifier.keep_ratio == 0.35


def test_a_time_limit_may_be_given_when_a_detector_is_loaded():
    assert load("sparse_dino_shapes", device="cpu", max_ms=1e6).model is not None
    with pytest.raises(ValueError, match="give one of them"):
        load("sparse_dino_shapes", keep=0.3, max_ms=60)
    with pytest.raises(NotSparsifiableError, match="tokendetr sparsify"):
        load("dino_shapes", device="cpu", max_ms=60)
