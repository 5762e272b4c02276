#!/usr/bin/env python
"""Draw the annotations of a config's training data, as annotated or as the loader augments them."""

from tokendetr.cli.visualize_data import main

if __name__ == "__main__":
    main()
