#!/usr/bin/env python
"""List the images of BDD100K whose objects cover less than a quarter of them: BDD-S."""

from tokendetr.cli.make_bdd_s import main

if __name__ == "__main__":
    main()
