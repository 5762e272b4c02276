"""Augmentations: random policies that look at an input and return a deterministic transform."""

import inspect
import pprint
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]


def _as_augmentation(tfm_or_aug: "Augmentation | Transform") -> "Augmentation":
    """Wrap a plain transform into an augmentation that always returns it."""
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    if isinstance(tfm_or_aug, Transform):
        return _ConstantAugmentation(tfm_or_aug)
    raise TypeError(f"expected an Augmentation or a Transform, got {type(tfm_or_aug).__name__}")


def _requested_attributes(augmentation: "Augmentation") -> tuple[str, ...]:
    """Return the names of the inputs of ``get_transform``, read off its signature.

    A single positional argument always means the image, under any name.
    """
    parameters = list(inspect.signature(augmentation.get_transform).parameters.values())
    if len(parameters) == 1 and parameters[0].kind is parameters[0].POSITIONAL_OR_KEYWORD:
        return ("image",)
    names = []
    for parameter in parameters:
        required = parameter.default is parameter.empty
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or not required:
            raise TypeError(
                f"The arguments of {type(augmentation).__name__}.get_transform cannot be read off "
                "its signature: it must take plain arguments without defaults and no *args or "
                "**kwargs. Otherwise set `input_args` or define `__call__`."
            )
        names.append(parameter.name)
    return tuple(names)


class Augmentation:
    """A policy that produces a transform for a given input, usually at random.

    Subclasses implement ``get_transform``; its argument names (``image``, ``boxes``, ``sem_seg`` or
    any attribute of the input) are the inputs it receives.

    Attributes:
        input_args: those names; found from the signature on first use unless a subclass sets it.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Store constructor arguments (``locals()``) as attributes."""
        for key, value in (params or {}).items():
            if key != "self" and not key.startswith("_"):
                setattr(self, key, value)

    def get_transform(self, *args: Any) -> Transform:
        """Choose the transform for an input."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform")

    def __call__(self, aug_input: Any) -> Transform:
        """Choose a transform for ``aug_input``, apply it there in place, and return it.

        Args:
            aug_input: has the attributes named in ``input_args`` and a ``transform`` method.

        Raises:
            AttributeError: the input lacks an attribute that this augmentation needs.
        """
        if self.input_args is None:
            self.input_args = _requested_attributes(self)
        missing = [name for name in self.input_args if not hasattr(aug_input, name)]
        if missing:
            raise AttributeError(
                f"{type(self).__name__} needs {list(self.input_args)} but the input "
                f"{type(aug_input).__name__} has no attribute {missing}."
            )
        tfm = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        assert isinstance(tfm, Transform), (
            f"{type(self).__name__}.get_transform must return a Transform, got {type(tfm)}"
        )
        aug_input.transform(tfm)
        return tfm

    def _rand_range(
        self, low: float = 1.0, high: float | None = None, size: Any = None
    ) -> np.ndarray | float:
        """Draw uniformly from [low, high), or from [0, low) if only one bound is given."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        parts = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if variadic or not hasattr(self, name):
                return object.__repr__(self)
            value = getattr(self, name)
            if value is parameter.default:
                continue
            text = pprint.pformat(value)
            parts.append(f"{name}={text if chr(10) not in text else '...'}")
        return f"{type(self).__name__}({', '.join(parts)})"

    __str__ = __repr__


TransformGen = Augmentation


class _ConstantAugmentation(Augmentation):
    """An augmentation that always returns the same transform."""

    input_args = ()

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


class AugmentationList(Augmentation):
    """Apply augmentations one after another; each sees the result of the ones before it.

    Args:
        augs: augmentations or plain transforms.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [_as_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(str(aug) for aug in self.augs)}]"

    __str__ = __repr__


class AugInput:
    """Input of augmentations: an image and, if given, boxes and a segmentation.

    Args:
        image: ``[H, W]`` or ``[H, W, C]``, uint8 in [0, 255] or float in [0, 1] or [0, 255].
        boxes: ``[N, 4]``, absolute XYXY.
        sem_seg: ``[H, W]`` integer labels.

    All three are attributes, changed in place by :meth:`transform`.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        sem_seg: np.ndarray | None = None,
    ) -> None:
        _check_image_dtype(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to everything this input holds."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(
        self, augmentations: Sequence[Augmentation | Transform]
    ) -> TransformList:
        """Apply augmentations in order; returns the transforms they chose."""
        return AugmentationList(augmentations)(self)


StandardAugInput = AugInput


def _check_image_dtype(image: Any) -> None:
    assert isinstance(image, np.ndarray), f"expected a numpy image, got {type(image)}"
    assert not np.issubdtype(image.dtype, np.integer) or image.dtype == np.uint8, (
        f"an image must be uint8 or floating point, got {image.dtype}"
    )
    assert image.ndim in (2, 3), f"an image must be HxW or HxWxC, got shape {image.shape}"


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: Any
) -> tuple[Any, TransformList]:
    """Apply augmentations to an image or an :class:`AugInput`.

    Args:
        augmentations: augmentations or plain transforms.
        inputs: an image (ndarray) or an :class:`AugInput`.

    Returns:
        The transformed image, if an image was given, or else the same input object, and the
        transforms that were applied.
    """
    if isinstance(inputs, np.ndarray):
        image_input = AugInput(inputs)
        tfms = image_input.apply_augmentations(augmentations)
        return image_input.image, tfms
    return inputs, inputs.apply_augmentations(augmentations)


apply_transform_gens = apply_augmentations
