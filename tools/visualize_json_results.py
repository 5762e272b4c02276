#!/usr/bin/env python
"""Draw the detections of a COCO results file (left) beside the annotations (right)."""

from tokendetr.cli.visualize_json_results import main

if __name__ == "__main__":
    main()
