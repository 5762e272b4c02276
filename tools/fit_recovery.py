#!/usr/bin/env python
"""Fit the maps that a transformed backbone restores tokens with."""

from tokendetr.cli.fit_recovery import main

if __name__ == "__main__":
    main()
