"""Report the number of skipped blocks of the pages after the tests."""

from pathlib import Path

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the blocks of all pages."""
    folder = Path(__file__).parent
    reports = [r for reports in terminalreporter.stats.values() for r in reports]
    if not any(str(getattr(r, "nodeid", "")).startswith(f"tests/{folder.name}/") for r in reports):
        return
    from tests.docs.pages import pages, python_blocks, shown_commands, skipped

    blocks = sum(len(python_blocks(page)) for page in pages())
    commands = sum(len(list(shown_commands(page))) for page in pages())
    left_out = [reason for page in pages() for reason in skipped(page)]
    terminalreporter.write_line(
        f"pages: {blocks} Python blocks, {commands} commands; "
        f"{len(left_out)} blocks left out{': ' * bool(left_out)}{', '.join(left_out)}"
    )
