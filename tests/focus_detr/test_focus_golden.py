"""With the published options Focus-DETR is the published network, weights and numbers included."""

import copy
import re

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from focus_detr import PUBLISHED_OPTIONS
from tests.golden import formula
from tests.golden.reference import (
    GOLDEN,
    ROOT,
    TOLERANCE,
    assert_same_detections,
    evaluate,
    expected,
    silence_dropout,
)
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights

RECORDS = formula.records(formula.BIG_SIZES)  # the published code needs 300 tokens in each layer
NAME = "focus_detr_r50_4scale"
CONFIG = ROOT / "projects/focus_detr/configs/focus_detr_resnet/focus_detr_r50_4scale_12ep.py"


def shared_name(key: str) -> str:
    """Return the first of the names of one tensor in the published model."""
    key = (
        key.removeprefix("transformer.decoder.") if "bbox_embed" in key or "class_" in key else key
    )
    return re.sub(
        r"^(transformer\.encoder\.enhance_MCSP|enhance_MCSP_layerlist)\.\d", "class_embed.6", key
    )


def published_state() -> dict[str, torch.Tensor]:
    """Return the published state dict with formula weights; of aliases the last one wins."""
    shapes = expected(NAME)["state_dict"]
    values = {
        shared_name(key): formula.parameter_value(key, torch.zeros(shape))
        for key, shape in shapes.items()
    }
    return {key: values[shared_name(key)] for key in shapes}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Load the model from a published checkpoint file."""
    config = LazyConfig.load(str(CONFIG))
    config.model.device = "cpu"
    config.model.dn_number = 0
    config.model.transformer.encoder.sparsifier.update(PUBLISHED_OPTIONS)
    model = instantiate(config.model)
    path = str(tmp_path_factory.mktemp("published") / "model.pth")
    torch.save({"model": published_state()}, path)
    report = load_weights(AtomicCheckpointer(model), path)
    assert report.is_complete
    return model


def test_it_has_the_published_number_of_parameters(published):
    assert sum(p.numel() for p in published.parameters()) == expected(NAME)["num_params"]


@pytest.mark.parametrize("sample", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_evaluation_gives_the_published_detections(published, sample):
    numbers, prefix = np.load(GOLDEN / f"{NAME}.npz"), f"eval{sample}"
    (found,), memory = evaluate(published, [RECORDS[sample]])
    head = numbers[f"{prefix}_memory_head"]
    ours = memory[0, ::37, ::29].numpy()
    np.testing.assert_allclose(ours, head, rtol=TOLERANCE, atol=TOLERANCE * np.abs(head).max())
    square_sum = float((memory.double() ** 2).sum())
    np.testing.assert_allclose(square_sum, numbers[f"{prefix}_memory_sum"][1], rtol=TOLERANCE)
    assert_same_detections(found, numbers, prefix, allowed=0)


def test_training_gives_the_published_losses(published):
    # Two queries match a box almost equally well: in float32 the processor would choose.
    model = copy.deepcopy(published).double().train()
    silence_dropout(model)
    with torch.no_grad():
        losses = model(RECORDS)
    wanted = dict(expected(NAME)["losses"])
    wanted["loss_foreground"] = wanted.pop("select_loss")
    ours = {name: loss.item() for name, loss in losses.items()}
    assert ours == pytest.approx(wanted, rel=TOLERANCE, abs=1e-6)
