"""Stand-ins are told from the real packages, also where both are installed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.source_tree import ROOT

CODE = """
from tokendetr.compat.stand_ins import is_stand_in
print(is_stand_in("detectron2"), is_stand_in("no_such_package"))
"""


def asked(*places: Path) -> str:
    path = os.pathsep.join(map(str, places))
    command = [sys.executable, "-c", CODE]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_real_package_beside_installed_stand_ins_is_real(tmp_path):
    for folder in ("detectron2", "tokendetr_standalone/packages/detectron2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "tokendetr_standalone" / "__init__.py").touch()
    finder = ROOT / "standalone" / "tokendetr_standalone" / "finder.py"
    (tmp_path / "tokendetr_standalone" / "finder.py").write_text(finder.read_text())
    assert asked(tmp_path, ROOT) == "False False"


def test_the_stand_ins_of_a_checkout_are_recognized():
    assert asked(ROOT / "standalone", ROOT) == "True False"
