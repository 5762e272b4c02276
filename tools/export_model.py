#!/usr/bin/env python
"""Export a detector for use outside of Python, with proof."""

from tokendetr.cli.export_model import main

if __name__ == "__main__":
    main()
