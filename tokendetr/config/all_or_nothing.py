"""Edits of a config that fail before they have changed anything."""

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
    """Let an edit of a config node change everything it should, or raise and change nothing.

    The edit runs on a copy first, so its errors come before the node itself is touched.

    Args:
        edit: a function that changes its first argument.
    """

    @functools.wraps(edit)
    def edit_whole(node: DictConfig, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        edit(copy.deepcopy(node), *args, **kwargs)
        return edit(node, *args, **kwargs)

    return edit_whole
