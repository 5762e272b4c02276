#!/usr/bin/env python
"""Measure the speed of inference, training or data loading for one or several configs."""

from tokendetr.cli.benchmark import main

if __name__ == "__main__":
    main()
