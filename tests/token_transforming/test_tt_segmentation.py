"""The segmentation benchmark: its measure, its labels, and a sweep of a small model."""

import json

import pytest
import torch
from torch.nn import functional as F

from benchmarks import segmentation
from benchmarks.segmentation import IGNORED, KINDS, SIDE, MaskedImages, Segmenter, mean_iou, train
from tokendetr.data.shapes import ShapesSpec, ensure_shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "shapes"
    return ensure_shapes(folder, ShapesSpec(num_train=6, num_val=3), workers=1)


class Oracle(torch.nn.Module):
    """Return the labels, but take every second column of squares for discs."""

    def __init__(self, spoiled: bool) -> None:
        super().__init__()
        self.spoiled = spoiled

    def predict(self, label):
        label = label.masked_fill(label == IGNORED, 0)
        wrong = (label == KINDS.index("square")) & (torch.arange(SIDE) % 2 == 0)
        return label.masked_fill(wrong, KINDS.index("disc")) if self.spoiled else label

    def forward(self, records):
        labels = torch.stack([self.predict(record["label"]) for record in records])
        return F.one_hot(labels, len(KINDS)).permute(0, 3, 1, 2).float()


def test_the_mean_iou_is_that_of_loops(root):
    images = MaskedImages.of(root, "train")
    assert mean_iou(Oracle(spoiled=False), images) == 100
    both, either = [0] * len(KINDS), [0] * len(KINDS)
    oracle = Oracle(spoiled=True)
    for index in range(len(images.ids)):
        label = images.read(index)["label"]
        found = oracle.predict(label)[label != IGNORED]
        truth = label[label != IGNORED]
        for kind in range(len(KINDS)):
            both[kind] += int(((found == kind) & (truth == kind)).sum())
            either[kind] += int(((found == kind) | (truth == kind)).sum())
    expected = 100 * sum(b / e for b, e in zip(both, either, strict=True)) / len(KINDS)
    assert mean_iou(oracle, images) == pytest.approx(expected, rel=1e-4)


def test_masks_lie_where_their_boxes_are_and_padding_is_ignored(root):
    images = MaskedImages.of(root, "val")
    for index in range(len(images.ids)):
        label = images.read(index)["label"]
        info = images.coco.imgs[images.ids[index]]
        assert (label[info["height"] :] == IGNORED).all()
        assert (label[:, info["width"] :] == IGNORED).all()
        boxes = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        for annotation in images.coco.imgToAnns[info["id"]]:
            x, y, width, height = map(int, annotation["bbox"])
            boxes[y : y + height, x : x + width] = True
        assert not ((label > 0) & (label != IGNORED) & ~boxes).any()


def test_a_sweep_records_every_point_once(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(segmentation, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(segmentation, "FITTED", 4)
    monkeypatch.setattr(segmentation, "PLACES", {(1,): (0.5,)})
    ways = ("merging", "transforming, least alike, affine *")
    monkeypatch.setattr(segmentation, "WAYS", {way: segmentation.WAYS[way] for way in ways})
    torch.manual_seed(0)
    model = Segmenter()
    train(model, MaskedImages.of(root, "train"), 2, 2)
    recorded = {"points": {}, "training": "t", "date": "d", "machine": "m"}
    segmentation.sweep(model.eval(), root, recorded)
    points = json.loads((tmp_path / "results.json").read_text())["points"]
    assert len(points) == 3 and points["dense"][1] > points["(1,); merging; 0.5"][1]
    (table,) = segmentation.tables(recorded)
    assert [row[0] for row in table.rows] == list(ways)
    capsys.readouterr()
    segmentation.sweep(model, root, recorded)
    assert "dense" not in capsys.readouterr().out, "measured again"
