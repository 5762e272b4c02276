#!/usr/bin/env python
"""Draw which tokens each reduced token of a transformed backbone is made of."""

from tokendetr.cli.visualize_mixing import main

if __name__ == "__main__":
    main()
