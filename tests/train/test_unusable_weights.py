"""Weights that are NaN or infinite are refused by name, whoever loads them."""

import pytest
import torch

from tests.train.toy import FEW, ToyDetector
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.finite import unusable_weights
from tokendetr.checkpoint.weights import load_weights, read_checkpoint
from tokendetr.errors import CheckpointError

NAN, INFINITY = float("nan"), float("inf")


def spoiled(**values):
    """A state dict in which one value of each named tensor is replaced."""
    state = {key: value.clone() for key, value in ToyDetector().state_dict().items()}
    for name, value in values.items():
        state[name.replace("__", ".")].view(-1)[-1] = value
    return state


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("stem.weight", NAN, "NaN or infinity"),
        ("bbox_embed.bias", -INFINITY, "NaN or infinity"),
        ("norm.running_mean", INFINITY, "NaN or infinity"),
        ("norm.running_var", NAN, "NaN or infinity"),
        ("norm.running_var", -1e-3, "negative variances"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unusable_weights_are_refused_by_name(tmp_path, name, value, kind, dtype):
    state = spoiled(**{name.replace(".", "__"): value})
    path = str(tmp_path / "weights.pth")
    torch.save({"model": {k: v.to(dtype) for k, v in state.items()}}, path)
    model = ToyDetector()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"weights.pth was not loaded.*{kind}: {name}"):
        load_weights(AtomicCheckpointer(model), path, strict=False)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_quantized_weights_are_refused_by_name(tmp_path, dtype):
    path = str(tmp_path / "weights.pth")
    torch.save({"model": {**spoiled(), "stem.weight": spoiled()["stem.weight"].to(dtype)}}, path)
    with pytest.raises(CheckpointError, match="integers, as quantized weights do: stem.weight"):
        load_weights(AtomicCheckpointer(ToyDetector()), path)


def test_weights_of_eight_bits_are_read_as_their_values(tmp_path):
    path = str(tmp_path / "weights.pth")
    low = {
        key: v.to(torch.float8_e5m2) if v.is_floating_point() else v for key, v in spoiled().items()
    }
    torch.save({"model": low}, path)
    model = ToyDetector()
    load_weights(AtomicCheckpointer(model), path)
    assert torch.equal(model.stem.weight, low["stem.weight"].float())
    low["stem.weight"].view(torch.uint8)[0] = 0x7C  # infinity
    torch.save({"model": low}, path)
    with pytest.raises(CheckpointError, match="NaN or infinity: stem.weight"):
        load_weights(AtomicCheckpointer(model), path)


def test_infinities_of_a_models_own_mask_are_no_fault():
    model = ToyDetector()
    model.register_buffer("mask", torch.tensor([0.0, -INFINITY]))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert unusable_weights(state, model) == []
    state["mask"][0] = INFINITY
    assert "mask" in unusable_weights(state, model)[0]


def test_values_that_the_model_does_not_load_are_no_fault(tmp_path):
    path = str(tmp_path / "weights.pth")
    other = {"head.weight": torch.tensor([NAN]), "class_embed.weight": torch.full((9, 9), NAN)}
    torch.save({"model": {**spoiled(), **other}}, path)
    report = load_weights(AtomicCheckpointer(ToyDetector()), path, strict=False)
    assert report.unexpected == ["head.weight"]


def test_only_the_weights_that_are_chosen_must_be_finite(tmp_path):
    path = str(tmp_path / "weights.pth")
    torch.save({"model": spoiled(stem__weight=NAN), "ema_state": spoiled()}, path)
    with pytest.raises(CheckpointError, match="stem.weight"):
        load_weights(AtomicCheckpointer(ToyDetector()), path)
    load_weights(AtomicCheckpointer(ToyDetector()), path, choice="ema")


@pytest.mark.parametrize(
    "place",
    [
        ("model", ["stem.weight"]),
        ("ema_state", ["norm.running_var"]),
        ("trainer", ["optimizer", "state", 0, "exp_avg"]),
    ],
)
def test_a_run_resumes_from_the_last_checkpoint_without_nan(toy_run, tmp_path, caplog, place):
    options = [*FEW, "train.model_ema.enabled=True"]
    toy_run(tmp_path / "run", *options)
    path = tmp_path / "run" / "model_final.pth"
    content = read_checkpoint(str(path))
    part, rest = place
    node = content[part]
    for name in rest:
        node = node[name]
    node.view(-1)[0] = NAN
    torch.save(content, path)
    toy_run(tmp_path / "run", *options, "train.max_iter=6", resume=True)
    assert f"its {part}" in caplog.text and "Resuming from the checkpoint before" in caplog.text
    weights = read_checkpoint(str(path))["model"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
