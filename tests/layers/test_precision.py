import logging

import pytest
import torch
from torch import nn

from tokendetr.layers import precision


@pytest.mark.parametrize(
    "features, emulates",
    [
        ({"architecture": "x86_64", "avx2": True}, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_bfloat16_on_a_processor_without_it_is_said_once(monkeypatch, caplog, features, emulates):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    precision._warn_of_emulation.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            precision.evaluated_in("float32", nn.Linear(1, 1))
        assert not caplog.records
        for _ in range(2):
            with precision.evaluated_in("bf16", nn.Linear(1, 1)):
                assert torch.is_autocast_enabled("cpu")
    precision._warn_of_emulation.cache_clear()
    assert len(caplog.records) == emulates
    assert precision.emulates_bfloat16() == emulates
