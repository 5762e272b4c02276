import pytest
import torch

from tests.deploy.models import build, images

MOST_GRAPHS = 19
"""The pass is opened, announced to the backbone and read by the encoder through a context variable,
and detectron2's structures count boxes: between them, graphs end."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "sparse"])
def test_a_compiled_detector_has_few_graphs(method):
    model, records = build("dino", method), [{"image": image} for image in images()[:2]]
    torch.compiler.reset()
    with torch.no_grad():
        explained = torch._dynamo.explain(model)(records)
    assert explained.graph_count <= MOST_GRAPHS, explained.break_reasons
