"""Make a trained detector sparse in minutes, with unlabelled images: see ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tokendetr.cli.sparsify import main

if __name__ == "__main__":
    main()
