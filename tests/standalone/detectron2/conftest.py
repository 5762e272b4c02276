"""Fixtures of the stand-in's tests."""

import uuid

import pytest


@pytest.fixture
def name() -> str:
    """A name for a data set that no other test uses."""
    return f"test_{uuid.uuid4().hex}"
