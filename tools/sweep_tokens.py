#!/usr/bin/env python
"""Sweep the keep ratio of a sparse encoder, or of reductions in a backbone, without training."""

from tokendetr.cli.sweep_tokens import main

if __name__ == "__main__":
    main()
