#!/usr/bin/env python
"""Print a project's tables of results, or write them into its pages."""

from tokendetr.cli.table import main

if __name__ == "__main__":
    main()
