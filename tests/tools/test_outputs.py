"""No tool writes over an input, or two outputs on each other; what was measured is exported."""

import sys
import types
from pathlib import Path

import pytest
import torch

from tests.train.toy import ToyDetector
from tokendetr.checkpoint.checkpointer import AtomicCheckpointer
from tokendetr.checkpoint.safetensors import load_slim
from tokendetr.checkpoint.weights import load_weights
from tokendetr.cli import export_checkpoint
from tokendetr.cli.demo import VideoFile, check_video_output, parse_arguments
from tokendetr.errors import CheckpointMismatchError, ConfigError
from tokendetr.io.outputs import output_paths, refuse_overwriting


def test_equal_stems_get_names_of_their_own(tmp_path):
    inputs = [Path(p) for p in ("a/x.png", "b/x.png", "x.jpg", "x_2.png", "X.bmp")]
    names = [path.name for path in output_paths(inputs, tmp_path, ".jpg")]
    assert names == ["x.jpg", "x_2.jpg", "x_3.jpg", "x_2_2.jpg", "X_4.jpg"]


def test_inputs_are_not_written_over(tmp_path):
    (tmp_path / "x.jpg").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"x\.jpg is an input"):
        output_paths([tmp_path / "x.jpg"], tmp_path / "link", ".jpg")
    refuse_overwriting([tmp_path / "x.jpg"], [tmp_path / "y.jpg"])


@pytest.mark.parametrize("output", ["missing/out.mp4", ".", "noending", "in.mp4"])
def test_videos_that_cannot_be_written_are_refused_first(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.mp4").write_text("")
    command = ["--config-file", "c", "--video-input", "in.mp4", "--output", output]
    with pytest.raises(ConfigError, match="--output|is an input"):
        check_video_output(parse_arguments(command))


@pytest.mark.parametrize("opens", [False, True])
def test_a_video_that_is_not_there_is_an_error(tmp_path, monkeypatch, opens):
    """OpenCV says nothing when a file cannot be opened or written."""

    class Writer:
        def __init__(self, *args):
            pass

        def isOpened(self):
            return opens

        def write(self, frame):
            pass

        def release(self):
            pass

    fake = types.SimpleNamespace(VideoWriter=Writer, VideoWriter_fourcc=lambda *code: 0)
    monkeypatch.setitem(sys.modules, "cv2", fake)
    with pytest.raises(FileNotFoundError, match="cannot write the video"):
        VideoFile(str(tmp_path / "out.mp4"), 25.0, (4, 4)).close()


@pytest.fixture
def best_of_average(tmp_path):
    """A best checkpoint that was chosen by the moving average's metric."""
    model = ToyDetector()
    average = {name: value + 1 for name, value in model.state_dict().items() if value.dim()}
    saved = {"model": model.state_dict(), "ema_state": average, "best_metric_name": "bbox_ema/AP"}
    torch.save(saved, tmp_path / "model_best.pth")
    return tmp_path / "model_best.pth"


@pytest.mark.parametrize(("which", "difference"), [("measured", 1.0), ("ema", 1.0), ("plain", 0.0)])
def test_the_measured_weights_are_exported(best_of_average, tmp_path, capsys, which, difference):
    out = tmp_path / "out.safetensors"
    files = ["--input", str(best_of_average), "--output", str(out), "--dtype", "float32"]
    export_checkpoint.main([*files, "--weights", which])
    plain = torch.load(best_of_average, weights_only=True)["model"]["stem.weight"]
    torch.testing.assert_close(load_slim(str(out))["stem.weight"], plain + difference)
    assert ("ema_state" in capsys.readouterr().out) == (which != "plain")


def test_export_does_not_replace_its_input(tmp_path):
    path = str(tmp_path / "a.safetensors")
    with pytest.raises(SystemExit, match="is an input"):
        export_checkpoint.main(["--input", path, "--output", path])


def test_class_heads_of_another_number_start_anew(tmp_path, caplog):
    torch.save({"model": ToyDetector(num_classes=7).state_dict()}, tmp_path / "seven.pth")
    model = ToyDetector(num_classes=3)
    heads = model.class_embed.weight.clone()
    report = load_weights(AtomicCheckpointer(model), str(tmp_path / "seven.pth"), new_classes=True)
    assert report.is_complete and torch.equal(model.class_embed.weight, heads)
    lines = [r.getMessage() for r in caplog.records if "start anew" in r.getMessage()]
    assert len(lines) == 1 and "class_embed" in lines[0]
    # An evaluation of heads without training would be of no use.
    with pytest.raises(CheckpointMismatchError, match="wrong shape"):
        load_weights(AtomicCheckpointer(ToyDetector()), str(tmp_path / "seven.pth"))


def test_another_model_is_no_matter_of_classes_and_its_table_is_short(tmp_path):
    weights = {f"some.quite.long.name.of.a.layer.number{i}": torch.zeros(1) for i in range(500)}
    weights["class_embed.weight"] = torch.zeros(7, 128)
    torch.save({"model": weights}, tmp_path / "other.pth")
    checkpointer = AtomicCheckpointer(ToyDetector())
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(checkpointer, str(tmp_path / "other.pth"), new_classes=True)
    assert max(map(len, str(caught.value).splitlines())) < 250
