"""Start ``failing.fail``: ``python -m tests.train.run_failing FOLDER HOW [RANKS] [WHO]``."""

import sys
from pathlib import Path

from tests.train import failing
from tokendetr.train.launch import launch

if __name__ == "__main__":
    folder, how, *numbers = sys.argv[1:]
    processes, who = (int(number) for number in [*numbers, "2", "1"][:2])
    launch(
        failing.fail,
        failing.arguments(Path(folder), how, processes=processes, who=who),
        device="cpu",
    )
