"""CPU optimizations of evaluation, which change results by rounding alone."""

from tokendetr.layers.cpu.optimize import Optimized, optimize

__all__ = ["Optimized", "optimize"]
