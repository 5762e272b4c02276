"""Token merging on CPUs: compiled forms of :mod:`tokendetr.tokens`' plans and of their merging.

On small images a chain of small operators costs more than their arithmetic. For the same scores the
compiled choices are exactly those of the chain in ``tokendetr.tokens``, which runs everywhere else.
"""

from tokendetr.ops.token_merging.operator import (
    merge_tokens_kernel,
    merges_by_kernel,
    plan_merge_kernel,
    token_similarity_kernel,
)

__all__ = [
    "merge_tokens_kernel",
    "merges_by_kernel",
    "plan_merge_kernel",
    "token_similarity_kernel",
]
