#!/usr/bin/env python
"""Detect objects in images, folders of images, videos or a camera's stream."""

from tokendetr.cli.demo import main

if __name__ == "__main__":
    main()
