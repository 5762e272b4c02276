#!/usr/bin/env python
"""Write the weights of a training checkpoint as a small safetensors file."""

from tokendetr.cli.export_checkpoint import main

if __name__ == "__main__":
    main()
