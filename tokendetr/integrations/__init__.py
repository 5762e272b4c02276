"""Use our kernels and encoders in models of detrex, mmcv and Hugging Face transformers.

Each library is imported only when needed; none of them is a requirement.
"""

from tokendetr.integrations.huggingface_encoder import HuggingFaceEncoder, sparsify_huggingface
from tokendetr.integrations.huggingface_weights import from_huggingface, to_huggingface
from tokendetr.integrations.kernels import Accelerated, accelerate

__all__ = [
    "Accelerated",
    "HuggingFaceEncoder",
    "accelerate",
    "from_huggingface",
    "sparsify_huggingface",
    "to_huggingface",
]
