"""A few cases of the campaigns with hostile and damaged files."""

from tests.reliability.hostile_checkpoints import damaged_checkpoints, malicious_checkpoints
from tests.reliability.hostile_configs import hostile_configs


def test_damaged_checkpoints_end_in_one_error_that_names_them(tmp_path):
    assert damaged_checkpoints(0, tmp_path) == 200


def test_malicious_checkpoints_are_refused_without_running_anything(tmp_path):
    assert malicious_checkpoints(0, tmp_path) >= 100


def test_hostile_configs_are_plain_data_or_refused(tmp_path):
    assert hostile_configs(0, tmp_path) >= 20
