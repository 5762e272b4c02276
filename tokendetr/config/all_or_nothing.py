"""Make an edit of a config change either everything it should or nothing."""

import copy
import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from omegaconf import DictConfig

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def all_or_nothing(
    edit: Callable[Concatenate[DictConfig, Arguments], Result],
) -> Callable[Concatenate[DictConfig, Arguments], Result]:
    """Decorate an edit of a config node, so that an edit that raises leaves the node unchanged.

    The edit runs on a copy first: if it raises, it does so before the node itself is touched.

    Args:
        edit: a function that changes its first argument in place.
    """

    @functools.wraps(edit)
    def edit_whole(node: DictConfig, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        edit(copy.deepcopy(node), *args, **kwargs)
        return edit(node, *args, **kwargs)

    return edit_whole
