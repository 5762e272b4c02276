"""tools/calibrate_selection.py."""

import pytest

from tokendetr.analysis.flops import synthetic_inputs
from tokendetr.cli import calibrate_selection

CONFIG = "projects/spt_backbone/configs/spt_dino_shapes.py"


def test_it_prints_the_override_to_use(monkeypatch, capsys):
    monkeypatch.setattr(
        calibrate_selection,
        "loaded_inputs",
        lambda cfg, count: [synthetic_inputs(96, 128, seed=n) for n in range(count)],
    )
    arguments = ["--config-file", CONFIG, "--ratio", "0.5", "--images", "1", "--tolerance", "0.2"]
    calibrate_selection.main([*arguments, "train.device=cpu"])
    *_, selected, override = capsys.readouterr().out.splitlines()
    assert selected.startswith("selected: 0.")
    name, _, value = override.partition("=")
    assert name == "model.backbone.evaluation_threshold"
    assert 0 < float(value) < 1


def test_wrong_ratios_and_models_are_one_line():
    with pytest.raises(SystemExit, match=r"^error: the ratio must be in \(0, 1\)"):
        calibrate_selection.main(["--config-file", CONFIG, "--ratio", "2", "train.device=cpu"])
