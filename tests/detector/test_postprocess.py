"""Choosing detections and putting them into the original image."""

import pytest
import torch

from tokendetr.detector import Predictions
from tokendetr.detector.postprocess import best_detections, to_instances, to_original_size


@pytest.mark.parametrize("limit", [1, 7, 12, 50])
def test_detections_are_the_best_pairs_of_query_and_class(limit):
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 4, 3), torch.rand(2, 4, 4)
    scores, classes, chosen = best_detections(logits, boxes, None, limit)
    for image in range(2):
        pairs = sorted(
            ((float(logits[image, q, k].sigmoid()), k, q) for q in range(4) for k in range(3)),
            reverse=True,
        )[:limit]
        assert scores[image].tolist() == pytest.approx([score for score, _, _ in pairs])
        assert classes[image].tolist() == [k for _, k, _ in pairs]
        for place, (_, _, query) in enumerate(pairs):
            assert torch.equal(chosen[image, place], boxes[image, query])


def test_padding_queries_give_no_detection():
    logits = torch.zeros(1, 2, 3, 2)
    logits[:, 1, 2] = 9.0  # the best query of the second image does not exist
    valid = torch.tensor([[True, True, True], [True, False, False]])
    results = to_instances(
        Predictions(logits, torch.full((1, 2, 3, 4), 0.5), valid), [(10, 10), (20, 20)], limit=6
    )
    assert [len(result) for result in results] == [6, 2]
    assert results[1].scores.tolist() == [0.5, 0.5]


def test_boxes_are_scaled_and_clipped_to_the_original_image():
    boxes = torch.tensor([[[[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 0.5, 0.5]]]])
    logits = torch.tensor([[[[2.0], [1.0]]]])
    results = to_instances(Predictions(logits, boxes), [(40, 80)], limit=5)
    assert results[0].pred_boxes.tensor.tolist() == [[20, 10, 60, 30], [60, 30, 100, 50]]
    (output,) = to_original_size(results, [{"height": 80, "width": 80}])
    assert output["instances"].image_size == (80, 80)
    assert output["instances"].pred_boxes.tensor.tolist() == [[20, 20, 60, 60], [60, 60, 80, 80]]
    (same,) = to_original_size(results, [{}])
    assert same["instances"].image_size == (40, 80)
