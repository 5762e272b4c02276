#!/usr/bin/env python
"""Show the project in one run (``make demo``): what a sparse encoder gains and costs on a CPU."""

from tokendetr.cli.run_demo import main

if __name__ == "__main__":
    main()
