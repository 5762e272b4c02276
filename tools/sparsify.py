#!/usr/bin/env python
"""Make a trained detector sparse in minutes, with unlabeled images."""

from tokendetr.cli.sparsify import main

if __name__ == "__main__":
    main()
