"""The part of detectron2's public API that lazy-config projects use.

Names, signatures, defaults and behavior are detectron2's own; a real installation always takes
precedence over this package. See https://detectron2.readthedocs.io for the reference documentation
of every name.
"""

__version__ = "0.6"
