#!/usr/bin/env python
"""Compare the small detectors of the shapes data set that come with the project, in one table."""

from tokendetr.cli.compare_shapes import main

if __name__ == "__main__":
    main()
