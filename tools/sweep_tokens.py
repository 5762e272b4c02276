#!/usr/bin/env python
"""Sweep keep ratios and methods of token reduction in a detector's backbone, without training."""

from tokendetr.cli.sweep_tokens import main

if __name__ == "__main__":
    main()
