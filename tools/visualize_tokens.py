#!/usr/bin/env python
"""Show which tokens each encoder layer kept or merged, per feature level, over images."""

from tokendetr.cli.visualize_tokens import main

if __name__ == "__main__":
    main()
