#!/usr/bin/env python
"""Train and evaluate the variants of a study, and print them as a table."""

from tokendetr.cli.ablate import main

if __name__ == "__main__":
    main()
