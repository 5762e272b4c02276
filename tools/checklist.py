#!/usr/bin/env python
"""Check what of the papers is here, and make the pages of docs/reproduction from it."""

from tokendetr.cli.checklist import main

if __name__ == "__main__":
    main()
