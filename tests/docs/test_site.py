"""The documentation site builds without a warning; notebooks have a test of their own."""

import os
import subprocess
import sys

import pytest

from tests.source_tree import ROOT


@pytest.mark.slow
@pytest.mark.timeout(0)  # as long as the load of the machine makes it
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_nb", reason="pip install -r requirements-docs.txt")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    command += ["-D", "nb_execution_mode=off", ".", str(tmp_path)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    start = (tmp_path / "docs" / "index.html").read_text()
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert not {page for page in pages if f'href="{page}.html"' not in start}
    assert (tmp_path / "docs" / "api" / "packages" / "tokendetr.ops.html").is_file()
