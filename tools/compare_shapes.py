#!/usr/bin/env python
"""Compare the project's small detectors for the shapes data set in one table."""

from tokendetr.cli.compare_shapes import main

if __name__ == "__main__":
    main()
