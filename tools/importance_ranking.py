#!/usr/bin/env python
"""Rank the levels of a trained dense detector by importance, for each stage of Dynamic DETR."""

from tokendetr.cli.importance_ranking import main

if __name__ == "__main__":
    main()
