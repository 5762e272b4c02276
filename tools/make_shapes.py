#!/usr/bin/env python
"""Generate the shapes data set (``shapes_train``, ``shapes_val``) unless it exists."""

from tokendetr.cli.make_shapes import main

if __name__ == "__main__":
    main()
