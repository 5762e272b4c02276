"""No program overwrites an input, writes two outputs to one file, or works before checking."""

import argparse
import contextlib
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from tokendetr.checkpoint.averaged import chosen_weights
from tokendetr.cli import analyze, demo, export_checkpoint, list_configs, make_bdd_s
from tokendetr.cli import main as console
from tokendetr.cli.argument_types import (
    non_negative_int,
    output_file,
    output_folder,
    positive_int,
    share,
)
from tokendetr.cli.arguments import described_parser, parse_with_overrides
from tokendetr.errors import OutputError
from tokendetr.io.outputs import check_output_file, drawing_names
from tokendetr.io.results import read_results


def test_inputs_of_one_stem_get_a_file_each():
    inputs = [Path(name) for name in ("a/x.jpg", "b/x.jpg", "b/x.png", "c/x.jpg", "c/y.jpg", "x")]
    names = [path.name for path in drawing_names(inputs, Path("out"), ".jpg")]
    assert names == ["x.jpg", "x_jpg.jpg", "x_png.jpg", "x_jpg_2.jpg", "y.jpg", "x_file.jpg"]


def test_names_that_are_one_on_some_disks_count_as_equal():
    inputs = [Path(name) for name in ("a/x.jpg", "b/X.jpg", "a/\u00e9.png", "b/e\u0301.png")]
    names = [path.name for path in drawing_names(inputs, Path("out"), ".jpg")]
    assert names == ["x.jpg", "X_jpg.jpg", "\u00e9.jpg", "e\u0301_png.jpg"]


def test_no_drawing_replaces_an_input(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link", tmp_path / "sub" / ".."):
        with pytest.raises(OutputError, match="would replace the input"):
            drawing_names([tmp_path / "a.png", tmp_path / "a.jpg"], folder, ".jpg")


def test_an_output_file_is_checked_before_the_work(tmp_path):
    source = tmp_path / "in.mp4"
    source.write_bytes(b"video")
    check_output_file(str(tmp_path / "new" / "out.mp4"), [source])
    assert (tmp_path / "new").is_dir()
    with pytest.raises(OutputError, match="is an input"):
        check_output_file(str(tmp_path / "new" / ".." / "in.mp4"), [source])
    with pytest.raises(OutputError, match="is a folder"):
        check_output_file(str(tmp_path))
    with pytest.raises(OutputError, match="cannot be written"):
        check_output_file(str(source / "out.mp4"))


def test_another_name_of_an_input_is_the_input(tmp_path):
    source = tmp_path / "in.mp4"
    source.write_bytes(b"video")
    os.link(source, tmp_path / "hard.mp4")
    with pytest.raises(OutputError, match="is an input"):
        check_output_file(str(tmp_path / "hard.mp4"), [source])
    with pytest.raises(OutputError, match="would replace the input"):
        drawing_names([tmp_path / "hard.png", source], tmp_path, ".mp4")


def test_no_program_writes_a_file_that_it_is_given(tmp_path, capsys):
    parser = described_parser(None)
    parser.add_argument("--config")
    parser.add_argument("--images", nargs="*", type=Path)
    parser.add_argument("--json", type=output_file)
    parser.add_argument("--csv", type=output_file)
    given = str(tmp_path / "given")
    Path(given).write_text("mine")
    (tmp_path / "link").symlink_to(given)
    assert parser.parse_args(["--json", str(tmp_path / "new"), "--config", given]).config == given
    refused = [
        ["--json", given, "--config", given],
        ["--json", str(tmp_path / "link"), "--images", "a", given],
        ["--json", str(tmp_path / "new"), "--csv", f"{tmp_path}/./new"],
        ["--json", given, f"train.init_checkpoint={given}?matching_heuristics=True"],
    ]
    for arguments in refused:
        with pytest.raises(SystemExit):
            parse_with_overrides(parser, arguments)
        assert "would be replaced" in capsys.readouterr().err
    assert Path(given).read_text() == "mine"


def test_overrides_may_stand_between_options():
    parser = described_parser(None)
    parser.add_argument("--input", nargs="+")
    parser.add_argument("--score", type=float)
    words = ["--input", "a", "train.x=1", "b", "model.y=2", "--score", "0.5"]
    args = parse_with_overrides(parser, words)
    assert (args.input, args.score, args.opts) == (["a", "b"], 0.5, ["train.x=1", "model.y=2"])
    parser.add_argument("config")
    parser.add_argument("opts", nargs="*")
    args = parse_with_overrides(parser, ["cfg", "--input", "a", "train.x=1"], intermixed=True)
    assert (args.config, args.input, args.opts) == ("cfg", ["a"], ["train.x=1"])


def test_no_program_takes_an_empty_value_for_this_folder(capsys):
    parser = described_parser(None)
    parser.add_argument("--images", type=Path)
    with pytest.raises(SystemExit):
        parser.parse_args(["--images", ""])
    assert "the value after --images is empty" in capsys.readouterr().err
    assert parser.parse_args(["--images", "a"]).images == Path("a")


def test_analysis_without_the_images_that_are_named_is_refused(tmp_path, capsys):
    given = ["--results", "a.json", "--annotations", "b.json", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        analyze.main([*given, "--images", str(tmp_path / "absent")])
    assert "absent is not a folder" in capsys.readouterr().err


def test_a_word_in_no_configs_name_is_said(capsys):
    with pytest.raises(SystemExit, match="no config has 'nosuch' in its name"):
        list_configs.main(["nosuch"])
    list_configs.main(["dino_shapes_swin"])
    assert capsys.readouterr().out.startswith("dino_shapes_swin")


def test_a_smaller_data_set_does_not_replace_the_one_it_is_made_of(tmp_path):
    source = tmp_path / "a.json"
    source.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(SystemExit):
        make_bdd_s.main(["--input", str(source), "--output", str(source)])
    assert "categories" in source.read_text()
    source.write_text("[" * 100_000)
    with pytest.raises(SystemExit, match="not readable JSON"):
        make_bdd_s.main(["--input", str(source), "--output", str(tmp_path / "b.json")])


def test_arguments_are_checked_when_they_are_read(tmp_path):
    (tmp_path / "a").write_text("")
    assert output_file(str(tmp_path / "new" / "x.json")) == str(tmp_path / "new" / "x.json")
    assert output_file("-") == "-" and output_file("model.x=3") == "model.x=3"
    assert output_folder(str(tmp_path / "folder")).is_dir()
    assert (share("0"), share("1"), share("0.25")) == (0.0, 1.0, 0.25)
    refused = [(output_file, tmp_path), (output_file, tmp_path / "a" / "x.json")]
    refused += [(output_folder, tmp_path / "a"), (share, "50"), (share, "-0.1"), (share, "nan")]
    for read, text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match=r"is a folder|cannot be|not a number"):
            read(str(text))


class _Captured(Exception):
    pass


@pytest.fixture
def parser_of(monkeypatch):
    """Return the parser of a command of the console script."""

    def parser_of(name):
        found = []

        def capture(self, *args, **options):
            found.append(self)
            raise _Captured

        with monkeypatch.context() as patch, contextlib.suppress(_Captured):
            patch.setattr(sys, "argv", ["tokendetr"])
            patch.setattr(argparse.ArgumentParser, "parse_known_args", capture)
            console.main([name])
        return found[0]

    return parser_of


@pytest.mark.parametrize("name", sorted(set(console.COMMANDS) - {"train", "evaluate"}))
def test_no_program_takes_a_negative_count(parser_of, name):
    signed = {"seed", "seeds", "machine_rank", "num_gpus", "num_machines"}  # the rest is launch's
    for action in parser_of(name)._actions:
        assert action.type is not int or action.dest in signed, action.option_strings
        if action.type in (positive_int, non_negative_int, share):
            with pytest.raises(argparse.ArgumentTypeError, match="'-1' is not"):
                action.type("-1")


def test_typed_errors_of_any_program_are_one_line(monkeypatch):
    def fail():
        raise PermissionError(13, "Permission denied", "x.json")

    monkeypatch.setattr("tokendetr.cli.list_configs.main", fail)
    monkeypatch.setattr(sys, "argv", ["tokendetr"])
    with pytest.raises(SystemExit, match=r"error: .*Permission denied: 'x.json'"):
        console.main(["list"])


@pytest.mark.parametrize(
    "record",
    [
        5,
        {},
        {"bbox": [1, 2, 3], "score": 1},
        {"bbox": [1, 2, 3, float("nan")], "score": 1},
        {"bbox": None},
        {"bbox": [1, 2, 3, 10**400]},
        {"score": "high"},
        {"category_id": [1]},
        {"image_id": True},
    ],
)
def test_results_that_are_none_are_named_by_their_number(tmp_path, record):
    good = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    bad = {**good, **record} if record and isinstance(record, dict) else record
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good, bad]))
    with pytest.raises(ValueError, match="record 1 "):
        read_results(str(path))


def test_whole_numbers_of_results_are_ids_as_pandas_writes_them(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(
        b'\xef\xbb\xbf[{"image_id": 3.0, "category_id": 1.0, "bbox": [1, 2, 3, 4], "score": 1}]'
    )
    (found,) = read_results(path)
    assert repr(found["image_id"]) == "3" and repr(found["category_id"]) == "1"


def test_a_video_without_frames_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load_opencv", lambda: None)
    monkeypatch.setattr(demo, "read_frames", lambda source: iter(()))
    args = types.SimpleNamespace(output="out.mp4", video_input="in.mp4", webcam=False)
    with pytest.raises(FileNotFoundError, match="no frames in in.mp4"):
        demo.run_on_video(None, args, None)


@pytest.mark.parametrize(
    ("name", "message"), [("out.jpg", "must end in"), ("in.mp4", "is an input"), ("", "must end")]
)
def test_videos_that_could_not_be_written_are_refused_first(tmp_path, name, message):
    source = tmp_path / "in.mp4"
    source.write_bytes(b"video")
    with pytest.raises(OutputError, match=message):
        demo._check_video_file(str(tmp_path / name), str(source))


def test_a_camera_needs_windows_or_a_file():
    headless = types.SimpleNamespace(getBuildInformation=lambda: "  GUI:                NONE\n")
    with pytest.raises(ImportError, match="--output"):
        demo._check_windows(headless)
    demo._check_windows(types.SimpleNamespace(getBuildInformation=lambda: "  GUI:  GTK3\n"))


def checkpoint(**others):
    return {"model": {"w": torch.zeros(2)}, "ema_state": {"w": torch.ones(2)}, **others}


def test_the_weights_that_were_measured_are_chosen():
    weights, which = chosen_weights(checkpoint(best_metric_name="bbox_ema/AP"))
    assert which == "ema" and weights["w"].eq(1).all()
    for plain in (checkpoint(), checkpoint(best_metric_name="bbox/AP")):
        weights, which = chosen_weights(plain)
        assert which == "model" and weights["w"].eq(0).all()
    assert chosen_weights(checkpoint(), "ema")[1] == "ema"
    assert chosen_weights(checkpoint(best_metric_name="bbox_ema/AP"), "model")[1] == "model"
    with pytest.raises(ValueError, match="no ema_state"):
        chosen_weights({"model": {}}, "ema")


def test_a_tensor_of_two_names_is_averaged_under_both(tmp_path):
    shared = torch.zeros(3)
    saved = {
        "model": {"head.w": shared, "decoder.head.w": shared, "mean": torch.zeros(1)},
        "ema_state": {"head.w": torch.ones(3)},
    }
    torch.save(saved, tmp_path / "best.pth")
    weights, _ = chosen_weights(torch.load(tmp_path / "best.pth", weights_only=True), "ema")
    assert weights["head.w"].eq(1).all() and weights["decoder.head.w"].eq(1).all()
    assert weights["mean"].eq(0).all()


def test_export_says_which_weights_it_took_and_spares_its_input(tmp_path, capsys):
    source = tmp_path / "model_best.pth"
    torch.save(checkpoint(best_metric_name="bbox_ema/AP"), source)
    export_checkpoint.main(["--input", str(source), "--output", str(tmp_path / "a.safetensors")])
    assert "'ema'" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is an input"):
        export_checkpoint.main(["--input", str(source), "--output", str(source)])
    assert torch.load(source, weights_only=True)["model"]["w"].eq(0).all()
