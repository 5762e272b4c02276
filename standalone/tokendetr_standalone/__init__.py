"""Stand-ins for detectron2 and detrex, for machines without the real packages.

``import detectron2`` and ``import detrex`` find the packages of this distribution only if
nothing else provides them, see :mod:`tokendetr_standalone.finder`.
"""

__version__ = "0.1.0"
