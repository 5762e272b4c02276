#!/usr/bin/env python
"""Check an installation: versions, kernels, data sets, one timed forward pass and training step."""

from tokendetr.cli.doctor import main

if __name__ == "__main__":
    main()
