#!/usr/bin/env python
"""Find the evaluation threshold at which a trained SPT selects a given share of the tokens."""

from tokendetr.cli.calibrate_selection import main

if __name__ == "__main__":
    main()
