"""The repository's statements about itself are consistent."""

import re

import yaml

import tokendetr
from tests.source_tree import ROOT


def test_one_version_everywhere():
    texts = {
        name: (ROOT / name).read_text()
        for name in ("pyproject.toml", "standalone/pyproject.toml", "CITATION.cff", "CHANGELOG.md")
    }
    patterns = (r'^version = "(.+)"$', r"^version: (.+)$", r"^## (\d\S*) ")
    found = {
        name: next(hit[1] for p in patterns if (hit := re.search(p, text, re.MULTILINE)))
        for name, text in texts.items()
    }
    assert set(found.values()) == {tokendetr.__version__}, found


def test_the_workflow_and_the_hooks_run_what_is_pinned_here():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in steps
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert {hook["entry"].split()[0] for hook in hooks[0]["hooks"]} <= {*pinned}
    assert "pre-commit" in pinned
