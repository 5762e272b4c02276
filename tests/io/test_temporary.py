"""A temporary folder that cannot be made or is full is named, with the way out."""

import errno
import tempfile

import pytest

from tokendetr.errors import CheckpointWriteError, DatasetError, OutputError
from tokendetr.io.temporary import temporary_folder


def test_the_folder_exists_in_the_block_alone():
    with temporary_folder() as folder:
        (folder / "file").write_text("text")
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OutputError, match="TMPDIR"), temporary_folder():
        pytest.fail("there is no folder")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_folder_is_named(number):
    with pytest.raises(OutputError, match=r"tokendetr-.*TMPDIR"), temporary_folder():
        raise OSError(number, "cannot write")


@pytest.mark.parametrize(
    "error",
    [
        DatasetError("of the labels"),
        CheckpointWriteError(errno.ENOSPC, "of the output"),
        FileNotFoundError(errno.ENOENT, "no such file", "a.jpg"),
        OSError(errno.EIO, "bad medium", "/elsewhere/a.jpg"),
    ],
)
def test_errors_of_other_files_stay_as_they_are(error):
    with pytest.raises(type(error)) as caught, temporary_folder():
        raise error
    assert caught.value is error
