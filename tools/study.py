#!/usr/bin/env python
"""Train, test and compare detectors with equal budgets, several seeds and intervals."""

from tokendetr.cli.study import main

if __name__ == "__main__":
    main()
