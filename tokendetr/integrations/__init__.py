"""Models of other libraries on our kernels and encoders: detrex, mmcv, Hugging Face transformers.

Every library is imported where it is needed; none of them is a requirement.
"""

from tokendetr.integrations.kernels import Accelerated, accelerate

__all__ = ["Accelerated", "accelerate"]
