#!/usr/bin/env python
"""Measure the source tree: sizes, packages, state of a pass, repeated blocks, cost of an import."""

from tokendetr.cli.code_figures import main

if __name__ == "__main__":
    main()
