#!/usr/bin/env python
"""Fit the maps with which a transformed backbone restores tokens, on unlabeled images."""

from tokendetr.cli.fit_recovery import main

if __name__ == "__main__":
    main()
