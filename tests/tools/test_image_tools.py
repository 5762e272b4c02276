"""The programs that draw: images in, images and counts out, on the small configs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from tests.small_shapes import small_shapes
from tokendetr.checkpoint.safetensors import save_safetensors
from tokendetr.cli import demo, visualize_tokens
from tokendetr.config.load import load_config
from tokendetr.encoder.forward_context import record_tokens
from tokendetr.encoder.layer_tokens import KEPT, MERGED, SKIPPED, describe, layer_tokens
from tokendetr.encoder.trace import ForwardTrace, LayerTrace
from tokendetr.predict import Predictor, coco_results, find_images, read_rgb
from tokendetr.tokens import Identity, Keep, LevelLayout, Merge, WindowGroup
from tokendetr.visualization.token_tiles import base_tile, fitting_width
from tokendetr.visualization.tokens import draw_tokens, legend_height

DENSE = "dino_shapes"
DYNAMIC = "dynamic_dino_shapes"


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory: pytest.TempPathFactory):
    with small_shapes(tmp_path_factory, num_train=2, num_val=3) as folder:
        yield folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, shapes) -> Path:
    """Return a checkpoint of a random model that detects with high scores."""
    from detectron2.config import instantiate

    torch.manual_seed(0)
    model = instantiate(load_config(DENSE).model)
    with torch.no_grad():
        for head in model.class_embed:
            head.bias.fill_(0.5)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_safetensors(model, str(path))
    return path


def test_demo_writes_drawings_and_coco_results(shapes, weights, tmp_path, capsys):
    output = tmp_path / "out"
    demo.main(
        ["--config-file", DENSE, "--input", str(shapes / "val"), "--output", str(output)]
        + ["--confidence-threshold", "0.6", "--opts", f"train.init_checkpoint={weights}"]
    )
    assert sorted(path.name for path in output.iterdir()) == [
        "000001.jpg",
        "000002.jpg",
        "000003.jpg",
        "detections.json",
    ]
    records = json.loads((output / "detections.json").read_text())
    assert len(records) == 3 * 100
    assert {record["category_id"] for record in records} <= set(range(1, 13))
    sizes = {str(p): Image.open(p).size for p in (shapes / "val").iterdir()}
    for record in records:
        x, y, w, h = record["bbox"]
        width, height = sizes[record["file_name"]]
        assert -1e-2 <= x <= x + w <= width + 1e-2
        assert -1e-2 <= y <= y + h <= height + 1e-2
    truth = COCO(str(shapes / "annotations" / "instances_val.json"))
    for record in records:
        record["image_id"] += 1_000_000
    truth.loadRes(records)  # accepts only results of its own images
    assert str(output) in capsys.readouterr().out


def test_the_threshold_decides_what_is_drawn(shapes, weights, tmp_path):
    picture = str(shapes / "val" / "000001.jpg")
    drawn = []
    for threshold in ("0.0", "1.0"):
        output = tmp_path / threshold
        demo.main(
            ["--config-file", DENSE, "--input", picture, "--output", str(output)]
            + ["--confidence-threshold", threshold]
            + ["--opts", f"train.init_checkpoint={weights}"]
        )
        drawn.append(np.asarray(Image.open(output / "000001.jpg"), dtype=np.float32))
    width, height = drawn[1].shape[1], drawn[1].shape[0]
    plain = Image.open(picture).resize((width, height), Image.Resampling.BILINEAR)
    difference = [np.abs(image - np.asarray(plain, dtype=np.float32)).mean() for image in drawn]
    assert difference[1] < 8 < 3 * difference[1] + 8 < difference[0]


def test_demo_reports_an_unreadable_image_and_continues(shapes, weights, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no picture")
    Image.new("L", (40, 60), 128).save(folder / "b.png")
    output = tmp_path / "out"
    with pytest.raises(SystemExit, match="1 images could not be read"):
        demo.main(
            ["--config-file", DENSE, "--input", str(folder), "--output", str(output)]
            + ["--opts", f"train.init_checkpoint={weights}"]
        )
    records = json.loads((output / "detections.json").read_text())
    assert {record["file_name"] for record in records} == {str(folder / "b.png")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", DENSE, "--input", "nowhere"], "no image at 'nowhere'"),
        (["--config-file", "dino_shape", "--input", "."], "dino_shapes"),
        (
            ["--config-file", DENSE, "--input", "{val}", "--opts", "train.max_itr=3"],
            "train.max_iter",
        ),
        (
            ["--config-file", DENSE, "--input", "{val}", "--opts", "train.init_checkpoint=no.pth"],
            "no.pth",
        ),
        (
            ["--config-file", DENSE, "--input", "{val}", "--metadata_dataset", "nothing"],
            "no data set is registered as 'nothing'",
        ),
    ],
)
def test_mistakes_are_named_without_a_traceback(shapes, tmp_path, arguments, message):
    arguments = [argument.format(val=shapes / "val") for argument in arguments]
    position = arguments.index("--opts") if "--opts" in arguments else len(arguments)
    arguments[position:position] = ["--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as error:
        demo.main(arguments)
    assert str(error.value).startswith("error: ")
    assert message in str(error.value)


def test_drawings_go_to_a_folder_not_to_an_images_name(tmp_path, capsys):
    command = ["--config-file", DENSE, "--input", "a.jpg", "--output"]
    with pytest.raises(SystemExit):
        demo.parse_arguments([*command, str(tmp_path / "out.jpg")])
    assert "out.jpg: give a folder" in capsys.readouterr().err
    (tmp_path / "out.jpg").mkdir()
    demo.parse_arguments([*command, str(tmp_path / "out.jpg")])


@pytest.mark.parametrize("arguments", [[], ["--input", "a", "--webcam"]])
def test_exactly_one_source_is_needed(arguments, capsys):
    with pytest.raises(SystemExit):
        demo.parse_arguments(["--config-file", DENSE, "--output", "o", *arguments])
    assert "exactly one of --input, --video-input and --webcam" in capsys.readouterr().err


def test_the_predictor_tests_at_the_size_of_the_config(shapes):
    small = Predictor.from_config(load_config(DENSE))
    assert small.inputs(np.zeros((100, 200, 3), dtype=np.uint8))["image"].shape == (3, 128, 256)
    larger = Predictor(small.model)
    assert larger.inputs(np.zeros((100, 200, 3), dtype=np.uint8))["image"].shape == (3, 667, 1333)
    bgr = Predictor(small.model, min_size=2, max_size=4, img_format="BGR")
    image = np.zeros((2, 4, 3), dtype=np.uint8)
    image[..., 0] = 9
    assert bgr.inputs(image)["image"].amax(dim=(1, 2)).tolist() == [0, 0, 9]


def test_find_images_takes_files_folders_and_patterns(tmp_path):
    for name in ("b.JPG", "a.png", "note.txt"):
        (tmp_path / name).touch()
    both = [tmp_path / "a.png", tmp_path / "b.JPG"]
    assert find_images([str(tmp_path)]) == both
    assert find_images([str(tmp_path / "*.png"), str(tmp_path)]) == both
    assert find_images([str(tmp_path / "note.txt")]) == [tmp_path / "note.txt"]
    (photo := tmp_path / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    assert photo in find_images([str(tmp_path)])  # to be refused by name, not left out
    with pytest.raises(OSError, match=r"photo.HEIC is not a readable image"):
        read_rgb(photo)
    with pytest.raises(OSError, match=r"a\.png is not a readable image"):
        read_rgb(tmp_path / "a.png")


def test_results_carry_the_data_sets_category_ids():
    from detectron2.data import Metadata
    from detectron2.structures import Boxes, Instances

    found = Instances((10, 10))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 4.0, 8.0]]))
    found.scores = torch.tensor([0.25])
    found.pred_classes = torch.tensor([1])
    metadata = Metadata(name="x", thing_dataset_id_to_contiguous_id={7: 0, 9: 1})
    assert coco_results(found, image_id=5, metadata=metadata, file_name="f.jpg") == [
        {
            "image_id": 5,
            "file_name": "f.jpg",
            "category_id": 9,
            "bbox": [1.0, 2.0, 3.0, 6.0],
            "score": 0.25,
        }
    ]


def small_layout() -> LevelLayout:
    """Return two levels, 4 x 4 and 2 x 2, with padding in the last column of the fine one."""
    fine, coarse = torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 2, 2, dtype=torch.bool)
    fine[..., 3] = True
    return LevelLayout.from_masks([fine, coarse])


def test_states_of_identity_and_kept_tokens():
    layout = small_layout()
    dense = layer_tokens(Identity(num_tokens=20, valid_BN=layout.valid_BN), layout)
    assert (dense.state_N.reshape(5, 4)[:4, :3] == KEPT).all()
    assert (dense.state_N.reshape(5, 4)[:4, 3] == SKIPPED).all()
    index = torch.tensor([[2, 17, 5]])
    kept = layer_tokens(Keep(index_BK=index, valid_BK=torch.tensor([[True, True, False]])), layout)
    assert np.flatnonzero(kept.state_N == KEPT).tolist() == [2, 17]
    assert not (kept.state_N == MERGED).any()
    assert np.flatnonzero(kept.anchor_N).tolist() == [2, 17]


def test_states_of_merged_windows():
    layout = small_layout()
    window = WindowGroup(slot_R=torch.tensor([1]), member_RP=torch.tensor([[0, 1, 4, 5]]))
    token_map = Merge(
        index_BK=torch.tensor([[2, 5, 16]]), valid_BK=None, groups=[window], num_all=20
    )
    tokens = layer_tokens(token_map, layout)
    assert np.flatnonzero(tokens.state_N == MERGED).tolist() == [0, 1, 4, 5]
    assert np.flatnonzero(tokens.state_N == KEPT).tolist() == [2, 16]
    assert np.flatnonzero(tokens.anchor_N).tolist() == [2, 5, 16]
    forward = ForwardTrace(layout, [LayerTrace(token_map)])
    (report,) = describe(forward)
    assert report["tokens"] == 16
    assert report["queries"] == 3
    assert report["levels"] == [
        {"tokens": 12, "queries": 2, "kept": 1, "merged": 4, "skipped": 7},
        {"tokens": 4, "queries": 1, "kept": 1, "merged": 0, "skipped": 3},
    ]


@pytest.mark.parametrize(
    ("height", "width", "tile"),
    [(30, 40, 256), (100, 25, 256), (900, 1, 1), (900, 9, 10), (1, 900, 256), (4000, 32, 8)],
)
def test_tiles_of_narrow_images_are_not_very_high(height, width, tile):
    image_HWC = np.zeros((height, width, 3), dtype=np.uint8)
    assert fitting_width(image_HWC, 256) == tile
    assert max(base_tile(image_HWC, tile).shape) <= 4 * 256


def test_the_drawing_shows_kept_merged_and_skipped_tokens():
    layout = small_layout()
    window = WindowGroup(slot_R=torch.tensor([1]), member_RP=torch.tensor([[0, 1, 4, 5]]))
    token_map = Merge(
        index_BK=torch.tensor([[2, 5, 16]]), valid_BK=None, groups=[window], num_all=20
    )
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, ::2] = 200
    forward = ForwardTrace(layout, [LayerTrace(token_map)])
    sheet = np.asarray(draw_tokens(image, forward, width=64)).astype(int)
    tile = sheet[6 + 16 : 6 + 16 + 64, 6 : 6 + 64]
    merged, kept, skipped = tile[2:30, 2:30], tile[2:14, 34:46], tile[50:62, 2:14]
    assert np.ptp(merged) <= 1
    assert merged.mean() == pytest.approx(100, abs=2)
    assert np.ptp(kept) == 200
    assert np.ptp(skipped) == 50
    width = 3 * (64 + 6) + 6
    assert sheet.shape == (16 + 64 + 6 + 6 + legend_height(width), width, 3)


def test_scores_and_what_became_known_later_are_heat_maps_above_and_below_the_layers():
    layout = small_layout()
    score_BN, map_BN = torch.zeros(1, 20), torch.zeros(1, 20)
    score_BN[0, 0], map_BN[0, 5] = 3.0, 7.0
    score_BN[0, 19] = float("-inf")  # no number: as low as the lowest
    maps = [Identity(num_tokens=20), {"score": score_BN, "coherence": torch.zeros(1, 2)}]
    forward = ForwardTrace(layout, [LayerTrace(*maps)], {"attention": map_BN})
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    sheet = np.asarray(draw_tokens(image, forward, width=64)).astype(int)
    rows, step = 3, 64 + 6 + 16
    assert sheet.shape[0] == rows * step + 6 + legend_height(sheet.shape[1])
    first, last = (sheet[6 + 16 + row * step :, 6:][:64, :64].sum(axis=2) for row in (0, 2))
    bright = first[:16, :16].min()
    assert bright > 4 * first[20:, 20:].max() and last[17:31, 17:31].min() == bright
    assert last[:14, :14].max() < bright / 4


def test_how_many_layers_a_token_takes_part_in_is_the_last_row_where_layers_differ():
    layout = LevelLayout.from_masks([torch.zeros(1, 2, 2, dtype=torch.bool)])
    score_BN = torch.arange(4.0)[None]
    layers = [
        LayerTrace(Keep(index_BK=torch.tensor([index])), {"score": score_BN})
        for index in ([0], [0, 1], [0, 1, 2])
    ]
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    step = 64 + 6 + 16
    sheet = np.asarray(draw_tokens(image, ForwardTrace(layout, layers), width=64)).astype(int)
    # One level: neither a column for all levels nor one for queries per area.
    # The scores are the same in all layers: one row.
    assert sheet.shape == ((1 + 3 + 1) * step + 6 + legend_height(76), 64 + 6 + 6, 3)
    last = sheet[4 * step + 6 + 16 :, 6:][:64, :64].sum(axis=2)
    cells = [last[:32, :32], last[:32, 32:], last[32:, :32], last[32:, 32:]]
    assert all(np.ptp(cell) == 0 for cell in cells)
    brightness = [cell[0, 0] for cell in cells]
    assert brightness == sorted(brightness, reverse=True) and len(set(brightness)) == 4
    alike = ForwardTrace(layout, layers[:1] * 3)
    # So are the layers here.
    assert draw_tokens(image, alike, width=64).size == (76, 2 * step + 6 + legend_height(76))


def test_visualize_tokens_reports_the_maps_of_the_model(shapes, tmp_path):
    picture = shapes / "val" / "000001.jpg"
    options = ["--opts", "train.init_checkpoint="]
    torch.manual_seed(0)
    visualize_tokens.main(
        ["--config-file", DYNAMIC, "--input", str(picture), "--output", str(tmp_path), *options]
    )
    reports = json.loads((tmp_path / "tokens.json").read_text())[str(picture)]
    assert Image.open(tmp_path / "000001_tokens.png").size[0] == 5 * (256 + 6) + 6
    assert len(reports) == 3
    for report in reports:
        for level in report["levels"]:
            assert level["kept"] + level["merged"] + level["skipped"] == level["tokens"]
        assert sum(level["queries"] for level in report["levels"]) == report["queries"]
        assert report["queries"] < 0.8 * report["tokens"]
    sparsifier = load_config(DYNAMIC).model.transformer.encoder.sparsifier
    for report, order in zip(reports, sparsifier.level_orders, strict=True):
        # The finest level keeps the share of its rank in the stage, up to whole windows.
        finest = report["levels"][0]
        ratio = sparsifier.keep_ratios[list(order).index(1)]
        assert finest["queries"] / finest["tokens"] == pytest.approx(ratio, abs=0.05)


def test_a_dense_encoder_keeps_every_token(shapes, tmp_path):
    predictor = Predictor.from_config(load_config(DENSE))
    with record_tokens() as trace:
        predictor(read_rgb(shapes / "val" / "000002.jpg"))
    for report in describe(trace.forwards[-1]):
        assert report["queries"] == report["tokens"]
        assert all(level["kept"] == level["tokens"] for level in report["levels"])
