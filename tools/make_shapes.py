#!/usr/bin/env python
"""Draw the shapes data set (``shapes_train``, ``shapes_val``) unless it is there already."""

from tokendetr.cli.make_shapes import main

if __name__ == "__main__":
    main()
