#!/usr/bin/env python
"""Count a model's operations, activations and parameters, or print its structure."""

from tokendetr.cli.analyze_model import main

if __name__ == "__main__":
    main()
