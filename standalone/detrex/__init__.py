"""The part of detrex's public API that lazy-config projects use.

Names, signatures, defaults, state-dict keys and numbers are detrex's own; a real installation
always takes precedence over this package. See https://detrex.readthedocs.io for the reference
documentation of every name.
"""

__version__ = "0.5.0"
