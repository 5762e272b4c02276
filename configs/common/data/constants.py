"""Means and standard deviations of ImageNet for pixel values 0 to 255."""

constants = {
    "imagenet_rgb256_mean": [123.675, 116.28, 103.53],
    "imagenet_rgb256_std": [58.395, 57.12, 57.375],
    "imagenet_bgr256_mean": [103.530, 116.280, 123.675],
    # the deviation is part of the first convolution in Detectron1 and MSRA weights
    "imagenet_bgr256_std": [1.0, 1.0, 1.0],
}
