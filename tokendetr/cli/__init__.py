"""Command-line programs, which ``tools/`` and the console script run."""
