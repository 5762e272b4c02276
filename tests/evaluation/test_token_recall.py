"""Recall of kept tokens against loops over boxes and tokens, alone and in evaluation."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from tests.pyramids import make_batch
from tokendetr.encoder import current_pass
from tokendetr.encoder.trace import ForwardTrace, LayerTrace
from tokendetr.evaluation.token_recall import TokenRecall, level_counts
from tokendetr.tokens import Identity, Keep

BOXES = torch.tensor(
    [[0.113, 0.217, 0.523, 0.631], [0.712, 0.109, 0.981, 0.953], [0.311, 0.313, 0.337, 0.341]]
)


def naive_counts(boxes, shapes, kept):
    """Count by level the tokens inside boxes, and the kept ones, of one image; ``kept`` is flat."""
    rows, start = [], 0
    for height, width in shapes:
        tokens = [
            (start + i * width + j, (j + 0.5) / width, (i + 0.5) / height)
            for i in range(height)
            for j in range(width)
        ]
        inside = [
            {t for t, x, y in tokens if x1 < x < x2 and y1 < y < y2} for x1, y1, x2, y2 in boxes
        ]
        in_any = set().union(*inside)
        rows.append(
            {
                "boxes": sum(bool(box) for box in inside),
                "reached": sum(bool(box & kept) for box in inside),
                "box_tokens": len(in_any),
                "kept": len(in_any & kept),
                "tokens": len(tokens),
                "queries": len(kept & {t for t, _, _ in tokens}),
            }
        )
        start += height * width
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_loops_also_in_a_padded_batch(seed):
    batch, alone = make_batch([(16, 21), (9, 10)], 4)
    generator = torch.Generator().manual_seed(seed)
    layers, expected = [], [None, None]
    for count in (60, 25):
        index, kept = [], []
        for image, single in enumerate(alone):
            own = torch.randperm(single.layout.num_tokens, generator=generator)[:count]
            place = batch.layout.valid_BN[image].nonzero()[:, 0]
            index.append(place[own])
            kept.append(set(own.tolist()))
        layers.append(LayerTrace(Keep(index_BK=torch.stack(index))))
        for image, single in enumerate(alone):
            rows = naive_counts(BOXES.tolist(), single.layout.level_shapes, kept[image])
            before = expected[image] or [dict.fromkeys(row, 0) for row in rows]
            expected[image] = [
                {name: old[name] + row[name] for name in row}
                for old, row in zip(before, rows, strict=True)
            ]
    for image in (0, 1):
        counts = level_counts(BOXES, ForwardTrace(batch.layout, layers), image=image)
        got = [{name: int(counts[name][level]) for name in counts} for level in range(4)]
        assert got == expected[image]


@pytest.fixture
def dataset():
    name = "recall_test"
    annotation = {"bbox": [10.0, 20.0, 40.0, 40.0], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0}
    crowd = {"bbox": [0.0, 0.0, 100.0, 100.0], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1}
    records = [{"image_id": 7, "width": 100, "height": 100, "annotations": [annotation, crowd]}]
    records.append({"image_id": 8, "width": 50, "height": 80, "annotations": []})
    DatasetCatalog.register(name, lambda: records)
    yield name
    DatasetCatalog.remove(name)


def test_the_evaluator_adds_up_images_and_forgets_what_it_has_counted(dataset):
    (layout,) = (single.layout for single in make_batch([(10, 10)], 4)[1])
    evaluator = TokenRecall(dataset)
    for _ in range(2):  # a second evaluation starts from zero
        evaluator.reset()
        for image_id, token_map in (
            (7, Keep(index_BK=torch.tensor([[33, 99]]))),
            (8, Identity(num_tokens=layout.num_tokens)),
        ):
            current_pass().recorder.begin_forward(layout)
            current_pass().recorder.record_layer(token_map)
            evaluator.process([{"image_id": image_id}], [{}])
        results = evaluator.evaluate()["tokens"]
        tokens = layout.num_tokens
        assert results["queries"] == pytest.approx(100 * (2 + tokens) / (2 * tokens))
        # 100 tokens 10 pixels apart: the box holds those of columns 1 to 4 and rows 2 to 5.
        assert results["kept-l1"] == pytest.approx(100 / 16)
        assert results["reached-l1"] == 100 and results["reached-l2"] == 0


def test_a_model_that_records_nothing_is_named(dataset):
    evaluator = TokenRecall(dataset)
    evaluator.reset()
    with pytest.raises(ValueError, match="no tokens were recorded"):
        evaluator.process([{"image_id": 7}], [{}])
    assert evaluator.evaluate() is None
