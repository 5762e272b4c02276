"""Names that detrex's own programs use beside training: timing of loaders, drawing of videos."""

import logging

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.benchmark import DataLoaderBenchmark, iter_benchmark
from detectron2.export.flatten import flatten_to_tuple
from detectron2.layers import ROIAlign
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import find_unused_parameters
from detectron2.utils.video_visualizer import VideoVisualizer
from torch import nn


def test_loaders_are_timed(caplog):
    records = [{"image_id": index, "width": 4, "height": 4} for index in range(8)]
    benchmark = DataLoaderBenchmark(
        records, mapper=lambda record: dict(record, image=torch.zeros(3, 4, 4)), total_batch_size=2
    )
    with caplog.at_level(logging.INFO, "detectron2"):
        benchmark.benchmark_dataset(5)
        benchmark.benchmark_mapper(5)
        benchmark.benchmark_distributed(5, 1)
    assert caplog.text.count("s") and len(caplog.records) >= 3


def test_an_iterator_is_timed():
    mean, every = iter_benchmark(iter(range(20)), 10, warmup=5)
    assert len(every) == 10 and mean > 0


def test_frames_are_drawn():
    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 30.0, 30.0]]))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    MetadataCatalog.get("frames").set(thing_classes=["thing"])
    drawer = VideoVisualizer(MetadataCatalog.get("frames"))
    for _ in range(2):
        frame = np.zeros((40, 60, 3), np.uint8)
        assert drawer.draw_instance_predictions(frame, found).get_image().any()


@pytest.mark.parametrize("box", [[0, 4, 4, 12, 4], [0, 4, 4, 4, 4]])
def test_boxes_without_extent_have_nothing_in_them(box):
    pooled = ROIAlign((2, 2), 1.0, 0)(torch.ones(1, 3, 16, 16), torch.tensor([box]).float())
    assert (pooled == 0).all()


def test_a_model_may_return_one_loss():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, inputs):
            return self.used(inputs).sum()

    assert find_unused_parameters(Model(), torch.ones(1, 2)) == ["unused.weight", "unused.bias"]


def test_what_is_flattened_is_rebuilt():
    nested = {"a": [torch.ones(2), (torch.zeros(1), 3)], "b": Boxes(torch.ones(1, 4))}
    leaves, rebuild = flatten_to_tuple(nested)
    again = rebuild(leaves)
    assert len(leaves) == 4 and again["a"][1][1] == 3
    assert torch.equal(again["b"].tensor, nested["b"].tensor)
