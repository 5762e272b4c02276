"""Videos are read to their end, and one that ends early is no success."""

import sys
import types

import numpy as np
import pytest

from tokendetr.cli import demo
from tokendetr.errors import CutOffVideoError
from tokendetr.predict.detector import _frames
from tokendetr.predict.video import read_frames


class Nothing:
    """Stands for the detections of a frame."""

    scores = np.zeros(0)

    def __getitem__(self, chosen):
        return self


class Capture:
    """Stands for OpenCV's reader of a video that announces some frames and has others."""

    announced, present = 100, 100

    def __init__(self, source):
        self.left = self.present

    def isOpened(self):
        return self.present >= 0

    def get(self, key):
        return {"rate": 0.0, "count": float(self.announced)}[key]

    def read(self):
        self.left -= 1
        return (self.left >= 0, np.full((2, 4, 3), [1, 2, 3], np.uint8))

    def release(self):
        pass


@pytest.fixture
def opencv(monkeypatch):
    names = {"CAP_PROP_FPS": "rate", "CAP_PROP_FRAME_COUNT": "count"}
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(VideoCapture=Capture, **names))

    def use(announced, present):
        monkeypatch.setattr(Capture, "announced", announced)
        monkeypatch.setattr(Capture, "present", present)

    return use


@pytest.mark.parametrize(
    ("announced", "present"), [(100, 100), (100, 98), (3, 1), (0, 7), (-1, 7), (2, 9)]
)
def test_a_whole_video_gives_its_frames_in_rgb(opencv, announced, present):
    opencv(announced, present)
    frames = list(read_frames("a.mp4"))
    assert len(frames) == present
    frame, rate = frames[0]
    assert frame[0, 0].tolist() == [3, 2, 1] and rate == 25.0


def test_a_video_that_is_cut_off_gives_its_frames_and_then_an_error(opencv, tmp_path, caplog):
    opencv(100, 60)
    found = []
    with pytest.raises(CutOffVideoError, match=r"a\.mp4 ends after 60 of 100 frames"):
        found.extend(read_frames("a.mp4"))  # extend keeps those before the error
    assert len(found) == 60
    (tmp_path / "a.mp4").touch()
    assert len(list(_frames(tmp_path / "a.mp4"))) == 60
    assert "ends after 60 of 100 frames" in caplog.text


def test_the_program_writes_what_there_is_and_fails(opencv, tmp_path, monkeypatch):
    opencv(100, 60)
    written = []

    class Writer:
        def __init__(self, name, *_):
            self.name = name

        def isOpened(self):
            return True

        def write(self, frame):
            written.append(frame)

        def release(self):
            (tmp_path / "out.mp4").write_bytes(b"video")

    cv2 = sys.modules["cv2"]
    monkeypatch.setattr(cv2, "VideoWriter", Writer, raising=False)
    monkeypatch.setattr(cv2, "VideoWriter_fourcc", lambda *_: 0, raising=False)
    monkeypatch.setattr(demo, "draw", lambda image, *_: image)
    args = types.SimpleNamespace(
        output=str(tmp_path / "out.mp4"), video_input="a.mp4", webcam=False, confidence_threshold=0
    )
    with pytest.raises(CutOffVideoError, match="60 of 100"):
        demo.run_on_video(lambda _: Nothing(), args, None)
    assert len(written) == 60


def test_what_opencv_cannot_open_is_named(opencv, tmp_path):
    opencv(0, -1)
    file = tmp_path / "a.mp4"
    with pytest.raises(FileNotFoundError, match=r"no video .*a\.mp4"):
        list(read_frames(str(file)))
    file.touch()
    with pytest.raises(OSError, match=r"a\.mp4 is not a video"):
        list(read_frames(str(file)))
    with pytest.raises(OSError, match="is not a video"):
        list(read_frames("rtsp://camera"))
