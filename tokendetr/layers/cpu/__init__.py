"""Speed-ups of evaluation on CPUs, without changing results beyond rounding."""

from tokendetr.layers.cpu.optimize import Optimized, optimize

__all__ = ["Optimized", "optimize"]
