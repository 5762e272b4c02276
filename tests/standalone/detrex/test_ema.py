"""Exponential moving average of weights."""

import pytest
import torch
from detrex.modeling.ema import (
    EMAHook,
    EMAState,
    EMAUpdater,
    apply_model_ema,
    apply_model_ema_and_restore,
    may_build_model_ema,
    may_get_ema_checkpointer,
)
from omegaconf import OmegaConf
from torch import nn


def config(enabled=True, decay=0.9):
    ema = {"enabled": enabled, "decay": decay, "device": ""}
    return OmegaConf.create({"train": {"model_ema": ema}, "model": {"device": "cpu"}})


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()


def step(model):
    """Change all weights and buffers, as training does."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(5, 3, dtype=torch.float64))


def test_hook_averages_weights_and_buffers_exactly():
    model = make_model()
    may_build_model_ema(config(), model)
    hook = EMAHook(config(), model)
    hook.before_train()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(4):
        step(model)
        hook.after_step()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = 0.9 * expected[name] + (1 - 0.9) * value
            else:
                expected[name] = value.clone()
    averaged = model.ema_state.state_dict()
    assert set(averaged) == set(expected)
    for name, value in averaged.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-14, atol=1e-14)
    assert averaged["1.num_batches_tracked"] == 4
    assert not any(value.requires_grad for value in averaged.values())


def test_ema_is_not_part_of_the_models_state_dict():
    model = make_model()
    names = set(model.state_dict())
    may_build_model_ema(config(), model)
    model.ema_state.save_from(model)
    assert set(model.state_dict()) == names


def test_weights_come_back_after_evaluation_even_after_an_error():
    model = make_model()
    may_build_model_ema(config(), model)
    EMAUpdater(model.ema_state).init_state(model)
    averaged = model[0].weight.detach().clone()
    step(model)
    own = model[0].weight.detach().clone()
    with (
        pytest.raises(RuntimeError, match="evaluation failed"),
        apply_model_ema_and_restore(model),
    ):
        assert torch.equal(model[0].weight, averaged)
        raise RuntimeError("evaluation failed")
    assert torch.equal(model[0].weight, own)
    before = apply_model_ema(model, save_current=True)
    assert torch.equal(model[0].weight, averaged)
    assert torch.equal(before.state["0.weight"], own)
    assert torch.equal(before.get_ema_model(model)[0].weight, own)


def test_resumed_average_goes_on_instead_of_starting_anew():
    model = make_model()
    may_build_model_ema(config(), model)
    saved = {name: value + 1 for name, value in model.state_dict().items()}
    (state,) = may_get_ema_checkpointer(config(), model).values()
    state.load_state_dict(saved)
    hook = EMAHook(config(decay=0.5), model)
    hook.before_train()
    hook.after_step()
    torch.testing.assert_close(model.ema_state.state["0.weight"], model[0].weight.detach() + 0.5)


def test_disabled_ema_leaves_no_trace():
    model = make_model()
    may_build_model_ema(config(enabled=False), model)
    assert not hasattr(model, "ema_state")
    assert may_get_ema_checkpointer(config(enabled=False), model) == {}
    with pytest.raises(ValueError, match="enabled=True"):
        EMAHook(config(enabled=False), model)


def test_errors_say_what_is_wrong():
    model = make_model()
    with pytest.raises(ValueError, match="may_build_model_ema"):
        apply_model_ema(model)
    may_build_model_ema(config(), model)
    with pytest.raises(ValueError, match="reserved for EMA"):
        may_build_model_ema(config(), model)
    with pytest.raises(KeyError, match=r"lacks \d+ tensors of the model, e.g. \['0.weight'"):
        apply_model_ema(model)
    assert EMAState().device is None and not EMAState().has_inited()
