"""The locked requirements: every package with one release and its hashes, and nothing local."""

import re

import pytest

from tests.source_tree import ROOT

RUNTIME, DEV, DOCS, TORCH = (f"requirements{kind}.txt" for kind in ("", "-dev", "-docs", "-torch"))
LOCKED = (RUNTIME, DEV, DOCS, TORCH)
# A requirement with the lines of its hashes.
ENTRY = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<release>\S+).*(?:\n +--hash.*)*", re.M)


def entries(name: str) -> dict[str, re.Match[str]]:
    text = (ROOT / name).read_text()
    return {f"{m['name']}=={m['release']}": m for m in ENTRY.finditer(text)}


@pytest.mark.parametrize("name", LOCKED)
def test_every_package_has_a_release_and_hashes(name):
    found = entries(name)
    assert found
    for entry in found.values():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry[0]), entry[0]
    for line in (ROOT / name).read_text().splitlines():
        is_start = re.match(r"[a-z0-9]", line)
        assert not is_start or ENTRY.match(line), f"{line!r} is not pinned"


@pytest.mark.parametrize("name", LOCKED)
def test_nothing_is_local_or_from_another_index(name):
    text = (ROOT / name).read_text()
    for word in ("file:", "://", "--index", "--extra-index", "--find-links", " -e ", " @ "):
        assert word not in text, word


@pytest.mark.parametrize("name", [RUNTIME, DEV, DOCS])
def test_the_lock_is_of_the_present_requirements(name):
    """`make lock` after a change of a ``.in`` file."""
    locked = entries(name)
    names = {entry["name"] for entry in locked.values()}
    for line in (ROOT / name).with_suffix(".in").read_text().splitlines():
        wanted = line.partition("#")[0].strip()
        if wanted:
            assert wanted in (locked if "==" in wanted else names), wanted


def test_torch_stays_outside():
    """Its build is a choice (``make TORCH=...``); the default's wheels are in their own file."""
    for name in (RUNTIME, DEV, DOCS):
        assert not [key for key in entries(name) if re.match(r"(torch|nvidia|triton)\b", key)]
    (entry,) = entries(TORCH).values()
    release = re.search(r"^TORCH_RELEASE := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert release is not None and release[1] == f"torch=={entry['release']}"


def test_no_package_has_two_releases_for_one_python():
    runtime = entries(RUNTIME)
    for key, entry in {**entries(DEV), **entries(DOCS)}.items():
        same = [k for k, other in runtime.items() if other["name"] == entry["name"]]
        assert not same or key in same, (key, same)
