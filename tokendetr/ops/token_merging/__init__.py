"""Token merging on CPUs: compiled forms of :mod:`tokendetr.tokens`' integer work.

On small images a chain of small operators costs more than their arithmetic. Each compiled operator
returns exactly what its chain in ``tokendetr.tokens`` returns, which runs everywhere else.
"""

from tokendetr.ops.token_merging.operator import (
    choose_windows_kernel,
    match_tokens_kernel,
    merged_order_kernel,
    merges_by_kernel,
)

__all__ = [
    "choose_windows_kernel",
    "match_tokens_kernel",
    "merged_order_kernel",
    "merges_by_kernel",
]
