#!/usr/bin/env python
"""Check COCO-format data sets before training, and say what to fix."""

from tokendetr.cli.check_dataset import main

if __name__ == "__main__":
    main()
