"""The runner: failures are kept, named with their command, and stay until they pass."""

import json

import pytest

from tests.reliability import campaign
from tests.reliability.campaign import Row, record, results_table, run_row
from tokendetr.analysis.tables import splice


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(campaign, "load_rows", lambda: campaign.ROWS)
    monkeypatch.setattr(campaign, "ROWS", {})
    return tmp_path / "results.json"


def odd_fails(seed, folder):
    assert not any(folder.iterdir())
    if seed % 2:
        raise ValueError(f"seed {seed} is odd\nsecond line")
    return 3


def test_failures_are_recorded_with_their_command(own_results, capsys):
    chosen = Row("XX1", "odd seeds", "0 failures", 1, 5, odd_fails, "files")
    campaign.ROWS["XX1"] = chosen
    outcome = run_row(chosen, range(5))
    assert outcome.failures == {1: "ValueError: seed 1 is odd", 3: "ValueError: seed 3 is odd"}
    assert (outcome.cases, outcome.events) == (5, 9)
    assert "python -m tests.reliability --rows XX1 --case 3" in capsys.readouterr().out
    record(outcome)
    entry = json.loads(own_results.read_text())["XX1"]
    assert entry["failures"] == {"1": "ValueError: seed 1 is odd", "3": "ValueError: seed 3 is odd"}
    assert campaign.open_failures("XX1") == [1, 3]
    text = results_table().markdown()
    assert "**2 of 5 failed**" in text and "--case 1" in text and "5 (9 files)" in text


def test_a_row_that_runs_out_of_time_says_so(own_results):
    chosen = Row("XX2", "no time", "0 failures", 1, 5, odd_fails)
    campaign.ROWS["XX2"] = chosen
    record(run_row(chosen, range(5), seconds=-1.0))
    assert "passed; 0 of 5 cases run before the time was up" in results_table().markdown()


def test_a_row_that_never_ran_says_so(own_results):
    campaign.ROWS["XX3"] = Row("XX3", "nothing", "0 failures", 1, 5, odd_fails)
    assert "not run" in results_table().markdown()


def test_a_row_that_this_machine_cannot_run_says_what_it_needs(own_results):
    def case(seed, folder):
        raise campaign.Unavailable("needs a GPU")

    campaign.ROWS["XX5"] = Row("XX5", "a kernel", "0 failures", 0, 3, case)
    outcome = run_row(campaign.ROWS["XX5"], range(3))
    assert not outcome.failures and outcome.cases == 0
    record(outcome)
    assert "not run: needs a GPU" in results_table().markdown()


def test_two_rows_of_one_name_are_refused(own_results):
    campaign.row("XX4", "a", target="", default=0, nightly=0)(odd_fails)
    with pytest.raises(ValueError, match="two rows XX4"):
        campaign.row("XX4", "b", target="", default=0, nightly=0)(odd_fails)


def test_the_page_shows_what_is_recorded(tmp_path):
    text = campaign.PAGE.read_text()
    copy = tmp_path / "page.md"
    copy.write_text(text)
    splice(copy, results_table())
    assert copy.read_text() == text, "run python -m tests.reliability --splice"
