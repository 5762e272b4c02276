#!/usr/bin/env python
"""Check the checklists of the papers, and write the pages of docs/reproduction from them."""

from tokendetr.cli.checklist import main

if __name__ == "__main__":
    main()
