"""A damaged file of JSON is named, with the way out."""

import pytest

from tokendetr.cli.ablate import last_metrics
from tokendetr.errors import DatasetError
from tokendetr.io.json_files import read_json


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff", b"\0" * 9, b"[" * 100_000])
def test_what_is_no_json_is_named(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"results\.json is not readable JSON"):
        read_json(path)
    path.write_bytes('\ufeff{"ü": NaN}'.encode())
    assert list(read_json(path)) == ["ü"]


def test_metrics_that_a_kill_cut_off_keep_their_evaluation(tmp_path):
    path = tmp_path / "metrics.json"
    row = '{"iteration": 5, "bbox/AP": 12.0, "bbox/AP50": 20.0, "bbox/APs": 3.0, "bbox/APm": 4.0, '
    path.write_text(f'{row}"bbox/APl": 5.0, "bbox/AP75": 6.0}}\n{{"iteration": 6, "bb')
    assert last_metrics(tmp_path)["bbox/AP"] == 12.0
    path.write_text('{"iteration": 6, "bb')
    with pytest.raises(DatasetError, match=r"metrics\.json has no evaluation"):
        last_metrics(tmp_path)
