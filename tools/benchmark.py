#!/usr/bin/env python
"""Measure how fast detectors of one or several configs run, train, or get their data."""

from tokendetr.cli.benchmark import main

if __name__ == "__main__":
    main()
