"""tools/sweep_tokens.py and tools/table.py on Token Transforming."""

import csv
import sys

import pytest
import torch

from tokendetr.analysis.inputs import load_measured_config
from tokendetr.analysis.tables import Table
from tokendetr.cli import sweep_tokens
from tokendetr.compat.stand_ins import is_stand_in
from tokendetr.config import load_config
from tokendetr.config.model import model_of
from tokendetr.predict import build_trained_model

CONFIG = "dino_shapes_swin"
WAY = "transforming:selection=uniform:threshold=-1"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Override that names weights of the config's model."""
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model_of(load_config(CONFIG)).state_dict()}, file)
    return f"train.init_checkpoint={file}"


def test_features_of_several_methods_are_swept_into_a_table_and_a_plot(
    tmp_path, monkeypatch, weights
):
    from tokendetr.analysis.flops import synthetic_inputs

    monkeypatch.setattr(
        sweep_tokens,
        "loaded_inputs",
        lambda cfg, count: [synthetic_inputs(96, 128, seed=n) for n in range(count)],
    )
    arguments = ["--config-file", CONFIG, "--layers", "2", "4", "--keep-ratios", "1", "0.5"]
    arguments += ["--features", "2", "--repeats", "1", "--input-size", "96", "128"]
    arguments += ["--output", str(tmp_path), "--ways", "pruning"]
    # The second run measures only the points that the first did not.
    sweep_tokens.main([*arguments, "--resume", "train.device=cpu", weights])
    first = (tmp_path / "sweep.csv").read_text()
    sweep_tokens.main([*arguments, WAY, "--resume", "train.device=cpu", weights])
    assert (tmp_path / "sweep.csv").read_text().startswith(first)
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["dense"] + ["pruning"] * 2 + [WAY] * 2
    dense, kept, pruned = rows[:3]
    assert float(dense["metric"]) == 0
    assert float(kept["metric"]) < 1e-4 < float(pruned["metric"])
    assert float(pruned["gflops"]) < float(dense["gflops"])
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_keep_ratios_of_encoders_are_swept_into_one_plot(tmp_path, monkeypatch):
    scores = iter(range(10))
    monkeypatch.setattr(sweep_tokens, "average_precision", lambda *_: lambda: float(next(scores)))
    arguments = ["--keep-ratios", "1", "0.3", "--repeats", "1", "--input-size", "96", "128"]
    arguments += ["--output", str(tmp_path), "--resume"]
    for method, name in (("sparse", "Sparse"), ("focus", "Focus"), ("dynamic", "mine")):
        named = ["--name", "mine"] if name == "mine" else []
        sweep_tokens.main(
            ["--config-file", f"{method}_dino_shapes", *arguments, *named, "train.device=cpu"]
        )
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["Sparse"] * 2 + ["Focus"] * 2 + ["mine"] * 2
    assert [row["metric"] for row in rows] == [f"{n}.0" for n in range(6)]
    for full, part in zip(rows[::2], rows[1::2], strict=True):
        assert float(part["gflops"]) < 0.8 * float(full["gflops"])
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_dense_encoder_without_layers_is_refused(tmp_path, monkeypatch, weights):
    monkeypatch.setattr(sweep_tokens, "average_precision", lambda *_: lambda: 0.0)
    arguments = ["--config-file", CONFIG, "--output", str(tmp_path)]
    overrides = ["train.device=cpu", weights]
    with pytest.raises(SystemExit, match="--layers"):
        sweep_tokens.main([*arguments, *overrides])
    with pytest.raises(SystemExit):
        sweep_tokens.main([*arguments, "--features", "2", *overrides])


def test_a_config_without_weights_is_refused(tmp_path):
    arguments = ["--config-file", CONFIG, "--output", str(tmp_path), "--layers", "2"]
    with pytest.raises(SystemExit, match="names no weights: add train.init_checkpoint=FILE"):
        sweep_tokens.main([*arguments, "train.device=cpu"])


def test_the_weights_that_a_config_names_are_used(tmp_path, weights):
    """As in the config that ``tokendetr sparsify`` writes."""
    file = weights.partition("=")[2]
    (tmp_path / "mine.py").write_text(
        "from tokendetr.config import load_config as _load\n"
        f"_config = _load({CONFIG!r}, ['train.device=cpu', {weights!r}])\n"
        "globals().update({key: _config[key] for key in _config})\n"
    )
    model = build_trained_model(load_measured_config(str(tmp_path / "mine.py")))
    expected = torch.load(file)["model"]
    for name, value in model.state_dict().items():
        assert value.equal(expected[name]), name


def test_errors_are_one_line(tmp_path):
    arguments = ["--config-file", "nowhere.py", "--layers", "2", "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="nowhere"):
        sweep_tokens.main(arguments)


def test_a_way_to_build_w_is_its_method_and_options():
    options = {"method": "transforming", "selection": "uniform", "threshold": -1.0}
    assert sweep_tokens.Way.parse(WAY) == sweep_tokens.Way(WAY, options)
    assert sweep_tokens.Way.parse("merging").options == {"method": "merging"}
    assert sweep_tokens.Way.parse("transforming:layers=0+2:normalize=False").options == {
        "method": "transforming",
        "layers": [0, 2],
        "normalize": False,
    }


def test_a_way_may_have_a_keep_ratio_for_each_layer():
    way = sweep_tokens.Way.parse("transforming:layers=0+2:keep_ratio=0.4+0.8")
    assert way.options["keep_ratio"] == [0.4, 0.8]
    assert way.keep_ratios([0.9, 0.7]) == [pytest.approx(0.6)]
    assert sweep_tokens.Way.parse("merging").keep_ratios([0.9, 0.7]) == [0.9, 0.7]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("squeezing", "squeezing"),
        ("pruning:selection=first", "first"),
        ("transforming:threshold=high", "high"),
        ("transforming:recovery=nearest", "nearest"),
        ("transforming:normalize=no", "true or false"),
        ("transforming:layers=1,2", "layers=1,2"),
        ("transforming:keep=3", "keep"),
        ("transforming:keep_ratio=0.5+2", "keep_ratio must lie in (0, 1], got 2.0"),
        ("transforming:keep_ratio=0.5+0.4", "2 keep ratios for 1 layers"),
    ],
)
def test_ways_that_do_not_exist_are_refused(way, message, capsys):
    with pytest.raises(SystemExit):
        sweep_tokens.parse_arguments(
            ["--config-file", CONFIG, "--layers", "2", "--output", "out", "--ways", way]
        )
    assert message in capsys.readouterr().err


def test_overrides_may_follow_the_ways():
    args = sweep_tokens.parse_arguments(
        ["--config-file", CONFIG, "--layers", "2", "--output", "out"]
        + ["--ways", "pruning", "train.device=cpu"]
    )
    assert [way.name for way in args.ways] == ["pruning"]
    assert args.opts == ["train.device=cpu"]


def test_the_papers_backbone_costs_what_the_paper_says():
    from projects.token_transforming import table

    cells = {row.model: table.measure(row) for row in table.DETECTION}
    assert cells["Swin-L, dense"] == pytest.approx(936.9, abs=0.5)
    assert 731 <= cells["Swin-L, transformed"] <= 736
    assert cells["Swin-L, Hourglass"] == pytest.approx(746, abs=3)


def test_classifiers_cost_what_the_paper_says():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from projects.token_transforming import table

    small = [row for row in table.CLASSIFIERS if row.model == "DeiT-S"]
    made = table.table_of("t", "", small)
    assert isinstance(made, Table) and not made.notes
    assert [row[3] for row in made.rows] == ["4.61", "3.04", "2.64"]
    assert "torchvision" not in sys.modules or not is_stand_in("detectron2")  # which loads it
