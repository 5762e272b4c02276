#!/usr/bin/env python
"""Draw the matrix W of a transformed backbone: which tokens each reduced token combines."""

from tokendetr.cli.visualize_mixing import main

if __name__ == "__main__":
    main()
