"""Weights in another form, kept until the tensors that they are made of change."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tokendetr.compat.torch_private import function_is_transformed

Made = TypeVar("Made")


class Cached(Generic[Made]):
    """What was last made of some tensors. Copies and pickles of it start empty."""

    def __init__(self) -> None:
        self._last: tuple[object, Made, list[Tensor]] | None = None  # one tuple: threads see it all

    def get(
        self, dtype: torch.dtype, tensors: Sequence[Tensor | None], make: Callable[[], Made]
    ) -> Made:
        """Return what ``make`` returns, called again only after a change.

        Args:
            dtype: the precision of the result.
            tensors: what it is made of. Replacing one and changes in place are noticed, changes
                through ``.data`` are not. Nothing is kept of inference tensors, which have no
                version, and inside transforms of ``torch.func``.
            make: called without gradients.
        """
        present = [each for each in tensors if each is not None]
        if function_is_transformed() or any(each.is_inference() for each in present):
            return make()
        made_of = (dtype, [(each.data_ptr(), each._version) for each in present])
        last = self._last
        if last is None or last[0] != made_of:
            with torch.inference_mode(False), torch.no_grad():  # later calls may be in any mode
                # Their memory is kept: while it is, no other tensor has the same address.
                last = (made_of, make(), [each.detach() for each in present])
            self._last = last
        return last[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_last": None}
