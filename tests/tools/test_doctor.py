"""``tokendetr doctor``: its findings, and that a broken check fails alone."""

import importlib.util
import json
import os
import sys

import pytest
import torch

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
    assert "FAILED gone" in shown and "setuptools<82" in shown and "tokendetr" in shown


@pytest.mark.parametrize(("load", "state", "words"), [(0.5, "ok", ""), (9.0, "note", "busy")])
def test_a_time_says_under_which_load_it_was_measured(monkeypatch, load, state, words):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    forward = next(each for each in doctor.check_model() if each.name == "forward pass")
    assert forward.state == state and words in forward.remedy
    assert f"load {load} on 2 processors" in forward.text


def test_a_processor_that_emulates_bfloat16_is_named(monkeypatch):
    features = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert "bfloat16 is slower" in doctor.check_torch()[0].text
    features["avx512_bf16"] = True
    assert "bfloat16" not in doctor.check_torch()[0].text


def test_missing_kernels_are_a_note(monkeypatch):
    from tokendetr.ops import library

    facts = library.LibraryFacts(load_error="there is no library")
    monkeypatch.setattr(library, "library_facts", lambda: facts)
    (finding,) = doctor.check_kernels()
    assert finding.state == doctor.NOTE and "there is no library" in finding.text


def test_trouble_that_is_known_comes_with_its_remedy(monkeypatch, tmp_path):
    """Real packages without pkg_resources, a torchvision of another torch, a headless OpenCV."""
    for name, text in (
        ("detectron2/__init__.py", ""),
        ("detrex/__init__.py", ""),
        ("torchvision/__init__.py", "raise RuntimeError('operator torchvision::nms is missing')"),
        ("cv2.py", "__version__ = '5'\ndef getBuildInformation(): return '  GUI:   NONE\\n'"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("detectron2", "detrex", "torchvision", "cv2"):
        for loaded in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(str(tmp_path))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "pkg_resources" else find_spec(name),
    )
    found = {
        each.name: each
        for check in (doctor.check_upstream, doctor.check_torch, doctor.check_tools)
        for each in check()
    }
    assert found["detectron2"].text.startswith("real")
    assert found["pkg_resources"].state == doctor.FAILED
    assert "setuptools<82" in found["pkg_resources"].remedy
    assert found["detrex._C"].state == doctor.NOTE
    assert "torchvision::nms" in found["torchvision"].text and "pip" in found["torchvision"].remedy
    assert "without windows" in found["cv2"].text and found["cv2"].remedy
