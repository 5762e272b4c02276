"""How busy other programs keep this machine, which decides what a measured time says."""

import os
from typing import NamedTuple

__all__ = ["MachineLoad", "machine_load"]

_BUSY = 0.75  # load per processor


class MachineLoad(NamedTuple):
    """The load of the last minute.

    Attributes:
        text: load and number of processors, in words; "" if the system does not report it.
        is_busy: other programs take so much that times are longer than the machine's own.
    """

    text: str
    is_busy: bool


def machine_load(own: float = 0.0) -> MachineLoad:
    """Return the load of this machine.

    Args:
        own: the share of it that this program has caused.
    """
    if not hasattr(os, "getloadavg"):
        return MachineLoad("", False)
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    text = f"load {load:.1f} on {processors} processor{'' if processors == 1 else 's'}"
    return MachineLoad(text, load - own > _BUSY * processors)
