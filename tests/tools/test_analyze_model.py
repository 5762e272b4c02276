import json
import re

import pytest

from tests import small_detectors
from tests.tools.configs import write_config
from tokendetr.analysis.flops import count_flops, synthetic_inputs
from tokendetr.cli import analyze_model


@pytest.fixture
def config(tmp_path) -> str:
    return write_config(tmp_path)


def analyzed(capsys, *arguments: str) -> dict:
    """Return the tool's stdout, which must be JSON and nothing else."""
    analyze_model.main(arguments)
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments: str) -> str:
    """Return the message that the tool stops with."""
    with pytest.raises(SystemExit) as stop:
        analyze_model.main(arguments)
    assert stop.value.code not in (0, None)
    return f"{stop.value.code}{capsys.readouterr().err}"


def test_every_task_is_printed_as_json(capsys, config):
    tasks = ["flop", "parameter", "activation", "structure"]
    size = ("--input-size", "64", "96")
    result = analyzed(capsys, "--config-file", config, "--tasks", *tasks, *size, "--json")
    model = small_detectors.dino(12)
    report = count_flops(model, synthetic_inputs(64, 96))
    assert result["flop"]["gflops"] == pytest.approx(report.total / 1e9)
    assert sum(result["flop"]["parts"].values()) == pytest.approx(result["flop"]["gflops"])
    assert result["flop"]["modules"][""] == result["flop"]["gflops"]
    assert result["flop"]["inputs"][0]["height"] == 64
    assert result["parameter"]["total"] == sum(p.numel() for p in model.parameters())
    assert result["activation"]["mega"] == pytest.approx(sum(report.activations.values()) / 1e6)
    assert result["structure"].startswith("DINO(")


def test_overrides_change_the_model_also_right_after_json(capsys, config):
    arguments = ("--config-file", config, "--tasks", "flop", "--input-size", "64", "64", "--json")
    few = analyzed(capsys, *arguments)
    many = analyzed(capsys, *arguments, "model.num_queries=20")
    assert many["flop"]["parts"]["decoder"] > few["flop"]["parts"]["decoder"]
    assert many["flop"]["parts"]["encoder"] == few["flop"]["parts"]["encoder"]
    assert many["overrides"] == ["model.num_queries=20"]


def test_json_may_go_to_a_file(capsys, config, tmp_path):
    target = tmp_path / "new" / "result.json"
    arguments = ("--config-file", config, "--tasks", "parameter", "--json", str(target))
    analyze_model.main(arguments)
    assert capsys.readouterr().out == ""
    assert json.loads(target.read_text())["parameter"]["total"] > 0


def test_test_images_are_averaged(capsys, config):
    arguments = ("--config-file", config, "--tasks", "flop", "-n", "2", "--json")
    flop = analyzed(capsys, *arguments)["flop"]
    widths = [image["width"] for image in flop["inputs"]]
    assert widths == [64, 96]
    each = [count_flops(small_detectors.dino(12), synthetic_inputs(64, w)).total for w in widths]
    assert flop["gflops"] == pytest.approx(sum(each) / 2e9)
    assert flop["gflops_std"] == pytest.approx(abs(each[0] - each[1]) / 2e9)


def test_blended_size_weighs_two_images(capsys, config):
    arguments = ("--config-file", config, "--tasks", "flop", "--blended", "--json")
    flop = analyzed(capsys, *arguments)["flop"]
    sizes = {(image["height"], image["width"]): image["gflops"] for image in flop["inputs"]}
    expected = 0.225 * sizes[800, 1066] + 0.775 * sizes[850, 1040]
    assert flop["gflops"] == pytest.approx(expected)


def test_tables(capsys, config):
    tasks = ("flop", "parameter", "activation", "structure")
    analyze_model.main(
        ("--config-file", config, "--input-size", "64", "64", "--depth", "2", "--tasks", *tasks)
    )
    text = capsys.readouterr().out
    for line in ("Total GFlops: ", "Total (Million) Activations: ", "Parameter Count:", "DINO("):
        assert line in text
    table = text[: text.index("Total GFlops")]
    assert "transformer.encoder" in table
    assert "transformer.encoder.layers" not in table  # deeper than asked for
    assert re.search(r"^conv +\d+\.\d{3}$", table, re.MULTILINE)


def test_shapes_alone_give_what_computing_gives(capsys, config):
    arguments = ("--config-file", config, "--tasks", "flop", "--input-size", "64", "64")
    quick = analyzed(capsys, *arguments, "--json")
    assert analyzed(capsys, *arguments, "--compute", "--json") == quick


def test_bad_command_lines_name_what_is_wrong(capsys, config, tmp_path):
    flop = ("--tasks", "flop", "--input-size", "64", "64")
    missing = str(tmp_path / "small_dinos.py")
    assert "small_dino.py" in refused(capsys, "--config-file", missing, *flop)
    assert "flops" in refused(capsys, "--config-file", config, "--tasks", "flops")
    assert "num_queries" in refused(capsys, "--config-file", config, *flop, "model.num_query=3")
    assert "not allowed" in refused(capsys, "--config-file", config, *flop, "--blended")
    assert "--num-inputs" in refused(capsys, "--config-file", config, *flop, "-n", "0")
    assert "not a whole number of at least 1" in refused(
        capsys, "--config-file", config, "--tasks", "flop", "--input-size", "0", "64"
    )
    weights = f"train.init_checkpoint={tmp_path / 'no.pth'}"
    assert "no.pth" in refused(capsys, "--config-file", config, *flop, weights)


def test_missing_test_data_says_how_to_do_without(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    config = write_config(tmp_path)
    with open(config, "a") as file:
        file.write(
            "\nfrom detectron2.data import get_detection_dataset_dicts\n"
            "dataloader.test.dataset = L(get_detection_dataset_dicts)(names='nowhere')\n"
        )
    message = refused(capsys, "--config-file", config, "--tasks", "flop")
    assert "nowhere" in message
    assert "--input-size" in message
