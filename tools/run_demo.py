#!/usr/bin/env python
"""The project in one run (``make demo``)."""

from tokendetr.cli.run_demo import main

if __name__ == "__main__":
    main()
