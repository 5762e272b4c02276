#!/usr/bin/env python
"""Check an installation: versions, kernels, data sets, a forward pass and a training step."""

from tokendetr.cli.doctor import main

if __name__ == "__main__":
    main()
