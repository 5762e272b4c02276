"""tools/calibrate_selection.py."""

import logging
from collections.abc import Iterator

import pytest

from tests.small_shapes import small_shapes
from tokendetr.analysis.flops import synthetic_inputs
from tokendetr.cli import calibrate_selection

CONFIG = "spt_dino_shapes"


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_shapes(tmp_path_factory, num_train=1, num_val=1):
        yield


def test_it_prints_the_override_to_use(monkeypatch, capsys, caplog):
    monkeypatch.setattr(
        calibrate_selection,
        "loaded_inputs",
        lambda cfg, count: [synthetic_inputs(96, 128, seed=n) for n in range(count)],
    )
    arguments = ["--config-file", CONFIG, "--ratio", "0.5", "--images", "1", "--tolerance", "0.2"]
    with caplog.at_level(logging.INFO):
        calibrate_selection.main([*arguments, "train.device=cpu"])
    assert "spt_dino_shapes.safetensors" in caplog.text, "the weights that come with the config"
    *_, selected, override = capsys.readouterr().out.splitlines()
    assert selected.startswith("selected: 0.")
    name, _, value = override.partition("=")
    assert name == "model.backbone.evaluation_threshold"
    assert 0 < float(value) < 1


def test_wrong_ratios_and_models_are_one_line():
    with pytest.raises(SystemExit, match=r"^error: the ratio must be in \(0, 1\)"):
        calibrate_selection.main(["--config-file", CONFIG, "--ratio", "2", "train.device=cpu"])
