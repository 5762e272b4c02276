#!/usr/bin/env python
"""Draw which tokens each encoder layer keeps or merges, for each feature level, over images."""

from tokendetr.cli.visualize_tokens import main

if __name__ == "__main__":
    main()
