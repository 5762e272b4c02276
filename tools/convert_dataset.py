#!/usr/bin/env python
"""Convert a folder of Pascal VOC or YOLO labels to COCO JSON, and check the result."""

from tokendetr.cli.convert_dataset import main

if __name__ == "__main__":
    main()
