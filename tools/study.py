#!/usr/bin/env python
"""Train, test and compare detectors as evidence."""

from tokendetr.cli.study import main

if __name__ == "__main__":
    main()
