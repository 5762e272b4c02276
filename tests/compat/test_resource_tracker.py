"""The tracker of multiprocessing's resources outlives the end of a terminal."""

import subprocess
import sys

import pytest

SCRIPT = """
import signal
from multiprocessing import resource_tracker
from tokendetr.compat.resource_tracker import start_resource_tracker
start_resource_tracker()
with open(f"/proc/{resource_tracker._resource_tracker._pid}/status") as status:
    blocked = next(line.split()[1] for line in status if line.startswith("SigBlk"))
assert int(blocked, 16) >> (signal.SIGHUP - 1) & 1
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sighup_is_blocked_in_the_tracker_and_not_here():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
