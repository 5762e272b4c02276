"""Command-line programs: what ``tools/`` and the console script run."""
