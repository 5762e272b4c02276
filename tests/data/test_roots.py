"""The environment variable that names the folder of data sets: meant, or refused by name."""

from pathlib import Path

import pytest

from tokendetr.cli.doctor import check_data, examine
from tokendetr.data.bccd import register_bccd
from tokendetr.data.bdd100k import register_bdd100k
from tokendetr.data.paths import datasets_root
from tokendetr.data.shapes import register_shapes
from tokendetr.errors import DatasetError


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("{}/file", "is a file"),
        ("{}/sets ", "begins or ends with a space"),
        ("{0}/sets:{0}/more", "has several paths"),
    ],
)
def test_a_root_that_cannot_be_meant_is_refused(tmp_path, monkeypatch, value, fault):
    (tmp_path / "file").touch()
    (tmp_path / "sets").mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", value.format(tmp_path))
    for register in (register_shapes, register_bccd, register_bdd100k):
        with pytest.raises(DatasetError, match=f"DETECTRON2_DATASETS=.*{fault}"):
            register()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "sets"]
    assert [finding.state for finding in examine([check_data])] == ["FAILED"]


def test_odd_roots_that_exist_are_meant(tmp_path, monkeypatch):
    for name in ("with space ", "a:b"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / name))
        assert datasets_root() == tmp_path / name
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    assert datasets_root() == Path("datasets")
