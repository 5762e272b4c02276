#!/usr/bin/env python
"""Print a project's result tables, or write them into its pages."""

from tokendetr.cli.table import main

if __name__ == "__main__":
    main()
