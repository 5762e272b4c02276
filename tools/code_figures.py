#!/usr/bin/env python
"""Measure the source tree: sizes, packages, global state, repeated blocks, cost of an import."""

from tokendetr.cli.code_figures import main

if __name__ == "__main__":
    main()
