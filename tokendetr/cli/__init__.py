"""Command lines: what ``tools/`` and the console scripts run."""
