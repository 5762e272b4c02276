#!/usr/bin/env python
"""Export a detector for use outside of Python, and verify that the file computes the same."""

from tokendetr.cli.export_model import main

if __name__ == "__main__":
    main()
