"""``tokendetr doctor``: what it finds, and that a broken part fails alone."""

import json

import pytest

from tokendetr.cli import doctor


def test_this_installation_is_healthy(tmp_path, capsys):
    doctor.main(["--json", str(tmp_path / "doctor.json")])
    found = {each["name"]: each for each in json.loads((tmp_path / "doctor.json").read_text())}
    assert {"python", "tokendetr", "torch", "detectron2", "detrex", "kernels"} <= set(found)
    assert found["training step"]["state"] == "ok" and "loss" in found["training step"]["text"]
    shown = capsys.readouterr().out
    assert all(name in shown for name in found)


def test_a_check_that_raises_is_a_finding_and_the_exit_code(monkeypatch, capsys):
    def check_gone():
        raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")

    found = doctor.examine((check_gone, doctor.check_python))
    monkeypatch.setattr(doctor, "examine", lambda: found)
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    shown = capsys.readouterr().out
    assert ended.value.code == 1
    assert "FAILED gone" in shown and "setuptools<80" in shown and "tokendetr" in shown


def test_missing_kernels_are_a_note(monkeypatch):
    from tokendetr.ops import library

    facts = library.LibraryFacts(load_error="there is no library")
    monkeypatch.setattr(library, "library_facts", lambda: facts)
    (finding,) = doctor.check_kernels()
    assert finding.state == doctor.NOTE and "there is no library" in finding.text
