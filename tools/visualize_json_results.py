#!/usr/bin/env python
"""Draw the detections of a COCO results file beside the annotations."""

from tokendetr.cli.visualize_json_results import main

if __name__ == "__main__":
    main()
