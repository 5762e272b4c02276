"""Random changes of color."""

import numpy as np
from detectron2.data.transforms.augmentation import Augmentation
from fvcore.transforms.transform import BlendTransform, Transform

__all__ = ["RandomBrightness", "RandomContrast", "RandomLighting", "RandomSaturation"]

# Luma weights of ITU-R BT.601 for red, green and blue.
_LUMA_RGB = (0.299, 0.587, 0.114)


class _RandomBlend(Augmentation):
    """Blend the image with a derived one; the image's weight is uniform in [min, max).

    Args:
        intensity_min: smallest weight of the image: below 1 weakens, above 1 strengthens.
        intensity_max: largest weight.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        super().__init__()
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def _other(self, image: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        other = self._other(image)
        return BlendTransform(src_image=other, src_weight=1 - weight, dst_weight=weight)


class RandomBrightness(_RandomBlend):
    """Scale all values by a random factor (blend with black)."""

    def _other(self, image: np.ndarray) -> np.ndarray:
        return np.zeros(1, dtype=np.float64)


class RandomContrast(_RandomBlend):
    """Blend with the image's mean value."""

    def _other(self, image: np.ndarray) -> np.ndarray:
        return np.asarray(image.mean())


class RandomSaturation(_RandomBlend):
    """Blend an RGB image with its gray version."""

    def _other(self, image: np.ndarray) -> np.ndarray:
        assert image.shape[-1] == 3, f"RandomSaturation works on RGB images, got {image.shape}"
        return image.dot(_LUMA_RGB)[:, :, np.newaxis]


class RandomLighting(Augmentation):
    """Add random multiples of ImageNet's principal color components to an RGB image.

    Args:
        scale: standard deviation of the multiples.

    Source: AlexNet (Krizhevsky et al., 2012), section 4.1.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.eigen_vecs = np.array(
            [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
        )
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, f"RandomLighting works on RGB images, got {image.shape}"
        weights = np.random.normal(scale=self.scale, size=3)
        shift = self.eigen_vecs.dot(weights * self.eigen_vals)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)
