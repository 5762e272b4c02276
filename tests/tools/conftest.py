"""What all tests of the programs need."""

import logging

import pytest


@pytest.fixture(autouse=True)
def quiet_loggers():
    """Close the tools' loggers: their stdout is closed by pytest after each test."""
    yield
    logging.getLogger("tokendetr").handlers.clear()
