"""The published Sparse DETR's numbers, from formula weights under its own names."""

import argparse
import copy

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from sparse_detr import decoder_attention_loss, from_published
from tests.golden import formula
from tests.golden.reference import GOLDEN, ROOT, TOLERANCE, expected, silence_dropout
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.weights import load_weights
from tokendetr.encoder.decoder_attention import MAP_NAME
from tokendetr.encoder.forward_context import record_tokens

NAME = "kakaobrain_sparse_detr_r50"
FACTS = expected(NAME)
NUMBERS = np.load(GOLDEN / f"{NAME}.npz")


def published_weights(part: str = "") -> dict[str, torch.Tensor]:
    return {
        name: formula.parameter_value(name, torch.empty(shape))
        for name, shape in FACTS["state_dict"].items()
        if part in name
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Load the config with the published options from a checkpoint file."""
    config = LazyConfig.load(
        str(ROOT / "projects/sparse_detr/configs/sparse_deformable_detr_r50_50ep.py")
    )
    config.model.num_classes, config.model.device = 91, "cpu"
    config.model.criterion.weight_dict = {}
    sparsifier = config.model.transformer.encoder.sparsifier
    sparsifier.padding, sparsifier.half_cell = "counted", False
    detector = instantiate(config.model)
    folder = tmp_path_factory.mktemp("published")
    torch.save({"model": published_weights()}, folder / "sparse.pth")
    report = load_weights(AtomicCheckpointer(detector), str(folder / "sparse.pth"))
    assert report.is_complete
    return detector


def assert_close(ours: torch.Tensor, name: str) -> None:
    wanted = NUMBERS[name]
    atol = TOLERANCE * np.abs(wanted).max()
    np.testing.assert_allclose(ours.numpy(), wanted, rtol=TOLERANCE, atol=atol)


def test_the_network_has_the_published_size(model):
    assert sum(parameter.numel() for parameter in model.parameters()) == FACTS["num_params"]


@pytest.mark.parametrize(
    ("sample", "dtype"),
    [
        (0, torch.float32),
        # Two tokens at the cut score almost equally: in float32 the processor would choose.
        pytest.param(1, torch.float64, marks=pytest.mark.slow),
    ],
)
def test_evaluation_gives_the_published_scores_kept_set_memory_and_detections(model, sample, dtype):
    model = copy.deepcopy(model).to(dtype).eval()
    seen, detect = {}, model.detect
    model.transformer.encoder.register_forward_hook(
        lambda module, args, output: seen.update(memory=output)
    )
    model.detect = lambda *args: seen.setdefault("found", detect(*args))
    with torch.no_grad(), record_tokens() as trace:
        model([formula.records()[sample]])
    layer, prefix = trace.forwards[0].layers[0], f"eval{sample}"
    assert_close(layer.scores["score"][0], f"{prefix}_score_map")
    assert sorted(layer.token_map.anchor_BK[0].tolist()) == NUMBERS[f"{prefix}_kept"].tolist()
    assert_close(seen["memory"][0, ::37, ::29], f"{prefix}_memory_head")
    squares = float((seen["memory"].double() ** 2).sum())
    np.testing.assert_allclose(squares, NUMBERS[f"{prefix}_memory_sum"][1], rtol=TOLERANCE)
    last = seen["found"].layers
    score_Q, class_Q = last.logits_SBQV[-1, 0].sigmoid().max(dim=-1)
    best = score_Q.sort(descending=True, stable=True).indices[: len(NUMBERS[f"{prefix}_scores"])]
    assert_close(score_Q[best], f"{prefix}_scores")
    assert_close(class_Q[best], f"{prefix}_classes")
    assert_close(last.boxes_SBQ4[-1, 0][best], f"{prefix}_boxes_cxcywh")


@pytest.mark.slow
def test_training_gives_the_published_losses_and_maps(model):
    model = copy.deepcopy(model).train()
    silence_dropout(model)
    seen = {}

    def watched(score_BN, mass_BN, *args, **kwargs):
        seen.update(score=score_BN, mass=mass_BN)
        return decoder_attention_loss(score_BN, mass_BN, *args, **kwargs)

    with torch.no_grad(), record_tokens() as trace, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparse_detr.plan.decoder_attention_loss", watched)
        losses = model(formula.records())
    ours = {name: float(value) for name, value in losses.items()}
    wanted = {
        name.replace("loss_ce", "loss_class").replace("mask_prediction", "dam"): value
        for name, value in FACTS["losses"].items()
    }
    assert ours == pytest.approx(wanted, rel=TOLERANCE)
    assert_close(seen["score"], "train_score_map")
    assert_close(seen["mass"], "train_dam")
    correct = trace.forwards[0].maps[MAP_NAME]
    assert not np.allclose(correct.numpy(), NUMBERS["train_dam"], rtol=0.1, atol=1.0)


def test_files_with_the_published_arguments_are_exported(tmp_path):
    """Published files hold the command line's ``argparse.Namespace`` beside the weights."""
    from tokendetr.cli.export_checkpoint import main

    weights = published_weights("layers.0.norm")
    arguments = argparse.Namespace(rho=0.3, two_stage=True)
    torch.save({"model": weights, "args": arguments}, tmp_path / "published.pth")
    output = tmp_path / "converted.safetensors"
    command = ["--input", str(tmp_path / "published.pth"), "--output", str(output)]
    main([*command, "--convert", "sparse_detr.from_published"])
    from tokendetr.checkpoint.weights import read_checkpoint

    found = read_checkpoint(str(output))["model"]
    assert set(found) == set(from_published(weights))
    with pytest.raises(SystemExit, match="sparse_detr.nothing"):
        main([*command, "--convert", "sparse_detr.nothing"])


def test_other_files_are_refused():
    with pytest.raises(ValueError, match="Sparse DETR"):
        from_published({"backbone.stem.conv1.weight": torch.zeros(1)})
