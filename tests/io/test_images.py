"""Images and other files are written whole or not at all, under any name."""

import os
from pathlib import Path

import pytest
from PIL import Image

from tokendetr.data.shapes import ShapesSpec, ensure_shapes
from tokendetr.errors import CheckpointWriteError, OutputError
from tokendetr.io import atomic
from tokendetr.io.atomic import write_atomically
from tokendetr.io.images import save_image
from tokendetr.predict import read_rgb

IMAGE = Image.new("RGB", (4, 3), (255, 0, 0))


def no_space(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "name", ["a.png", "a.JPG", "a.jpeg", "x" * 251 + ".png", "ü" * 120 + ".png"]
)
def test_an_image_is_written_in_the_format_of_its_name(tmp_path, name):
    save_image(IMAGE, tmp_path / name)
    with Image.open(tmp_path / name) as read:
        assert read.size == (4, 3) and read.format == ("PNG" if "png" in name else "JPEG")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a", "a.txt", "a.svg"])
def test_a_name_of_no_image_is_refused(tmp_path, name):
    with pytest.raises(OutputError, match="must end in .jpg or .png"):
        save_image(IMAGE, tmp_path / name)
    assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_the_older_image(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"older")
    monkeypatch.setattr(atomic.os, "fsync", no_space)
    with pytest.raises(CheckpointWriteError, match=r"a\.png .*No space left"):
        save_image(IMAGE, path)
    assert path.read_bytes() == b"older" and os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(CheckpointWriteError):
        write_atomically(str(tmp_path / ("y" * 250)), b"1")
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_pipe_under_an_images_name_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    for path in tmp_path.iterdir():
        with pytest.raises(OSError, match="is a folder, a pipe or a device"):
            read_rgb(path)


def test_a_data_set_that_does_not_fit_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", no_space)
    spec = ShapesSpec(num_train=1, num_val=1)
    with pytest.raises(OutputError, match="shapes cannot be written: No space left"):
        ensure_shapes(tmp_path / "shapes", spec, workers=1)
    assert not os.listdir(tmp_path)
