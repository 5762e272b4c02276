#!/usr/bin/env python
"""Validate COCO-format data sets before training, and report what to fix."""

from tokendetr.cli.check_dataset import main

if __name__ == "__main__":
    main()
