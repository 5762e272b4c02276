#!/usr/bin/env python
"""Train or evaluate a detector from a lazy config."""

from tokendetr.cli.train_net import main

if __name__ == "__main__":
    main()
